"""The head's answers to the edits of a batch, generated once while the head stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from errata.edit import Edit
from serving.worker.live_model import LiveModel


@dataclass(frozen=True)
class HeadSaid:
    """The answer to an edit, and whether it is the target. Of several, the first that is not: it says most about the edit.

    `last` is the answer to the last prompt: of the two forms of an edit, the one in chat. None stands for an answer that is not
    known, because nothing depends on it.
    """

    text: str | None
    is_target: bool
    last: str | None

    @classmethod
    def of(cls, edit: Edit, texts: Sequence[str]) -> HeadSaid:
        wrong = edit.first_wrong(texts)
        return cls(texts[0], True, texts[-1]) if wrong is None else cls(wrong, False, texts[-1])


UNKNOWN = HeadSaid(None, False, None)


class HeadAnswers:
    """Answers of the live model to these edits: what its memory says, or what it generates if it `must`, or if it is asked.

    They are kept until its version is another one, and beyond if that was asked the edit as one that it holds.
    """

    def __init__(self, live_model: LiveModel, edits: Sequence[Edit], must: bool = False) -> None:
        self.live_model, self.edits = live_model, edits
        self.is_asked = must or not live_model.knows_answers
        self._version, self._said = live_model.version, dict[int, HeadSaid]()

    def to(self, group: Sequence[int]) -> list[HeadSaid]:
        """Return the answers to the edits at these positions. Raises `EditRejected`, as `LiveModel.answers` does."""
        if self.live_model.version != self._version:
            self._version = self.live_model.version
            self._said = {i: said for i, said in self._said.items() if self.live_model.still_answers(self.edits[i])}
        if new := [i for i in group if i not in self._said]:
            edits = [self.edits[i] for i in new]
            found = self.live_model.answers(edits) if self.is_asked else self.live_model.remembered(edits)
            answers = zip(new, edits, found, strict=True)
            self._said |= {i: UNKNOWN if texts is None else HeadSaid.of(edit, texts) for i, edit, texts in answers}
        return [self._said[i] for i in group]

    def known(self, i: int) -> str | None:
        """Return the head's answer to one edit, if it was generated and is not right."""
        said = self._said.get(i)
        return None if said is None or said.is_target else said.text
