"""The questions that score a batch of edits: its prompts, rephrasings, neighbours, consequences and earlier edits."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from errata.edit import Edit, Probe, Question
from errata.evaluate.bootstrap import OwnedRatio
from errata.text.dialogue import HELD_OUT_SYSTEM_PROMPT, HELD_OUT_TURN, Dialogue, Prompt
from errata.text.rules import prompt_key, same_text

KINDS = (
    *("efficacy", "generalisation", "locality", "portability"),
    *("retention", "retention_every", "other_system", "second_turn", "re_edited", "reverted"),
)


@dataclass(frozen=True)
class Questions:
    """The (prompt, answer) pairs that score edits, by kind.

    Of two edits of one prompt the later counts, and a neighbour that is itself edited is left out. `owners` holds, for each
    kind, the prompt of the edit that each question belongs to; `portability_kinds` the kind that each consequence names.
    Edits in chat are also asked under a system prompt and after a turn that no training has seen. Edits of facts that earlier
    edits gave another target are asked once more: `reverted`, if the unedited model answers so, or else `re_edited`.
    """

    efficacy: tuple[Question, ...]
    generalisation: tuple[Question, ...]
    locality: tuple[Question, ...]
    portability: tuple[Question, ...]
    retention: tuple[Question, ...]
    num_edits: int
    retention_every: tuple[Question, ...] = ()
    other_system: tuple[Question, ...] = ()
    second_turn: tuple[Question, ...] = ()
    re_edited: tuple[Question, ...] = ()
    reverted: tuple[Question, ...] = ()
    owners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    portability_kinds: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        edits: Sequence[Edit],
        first: Sequence[Edit] = (),
        earlier: Sequence[Edit] = (),
        unedited: Mapping[Prompt, str] | None = None,
    ) -> Questions:
        """Collect the questions of `edits`, and retention questions of two other samples of edits.

        `first` are the earliest edits of a stream and `earlier` a sample of all its batches; neither need be in `edits`.
        `unedited` are the unedited model's answers to all their prompts; without them, edits made again are asked no more
        than others.
        """
        latest = {key: edit for edit in (*first, *earlier, *edits) for key in edit.keys}
        current = list({edit.keys: edit for edit in edits}.values())
        probes = [(edit, probe, p) for edit in current for probe in edit.portability for p in edit.ask(probe.prompt)]
        asked: dict[str, list[tuple[Edit, Question]]] = {
            "efficacy": [(edit, edit.question(p)) for edit in current for p in edit.prompts],
            "generalisation": [(e, e.question(p)) for e in current for text in e.rephrasings for p in e.ask(text)],
            "locality": [
                (e, question_of(probe, p))
                for e in current
                for probe in e.locality
                for p in e.ask(probe.prompt)
                if prompt_key(p) not in latest
            ],
            "portability": [(edit, question_of(probe, p)) for edit, probe, p in probes],
            "retention": [(edit, edit.question(p)) for edit in first for p in edit.prompts],
            "retention_every": [(edit, edit.question(p)) for edit in earlier for p in edit.prompts],
        }
        in_chat = [(edit, prompt) for edit in current for prompt in edit.prompts if isinstance(prompt, Dialogue)]
        asked["other_system"] = [(edit, edit.question(p.with_system(HELD_OUT_SYSTEM_PROMPT))) for edit, p in in_chat]
        asked["second_turn"] = [(edit, edit.question(p.after(*HELD_OUT_TURN))) for edit, p in in_chat]
        again = [(edit, edit.question(p)) for edit in _made_again(edits, current) for p in edit.prompts if unedited is not None]
        is_truth = [one.is_answered_by(unedited[one.prompt]) for _, one in again] if unedited is not None else []
        asked["re_edited"] = [pair for pair, is_so in zip(again, is_truth, strict=True) if not is_so]
        asked["reverted"] = [pair for pair, is_so in zip(again, is_truth, strict=True) if is_so]
        for kind in ("retention", "retention_every"):
            asked[kind] = [(edit, question) for edit, question in asked[kind] if _is_latest(edit, question.prompt, latest)]
        return cls(
            **{kind: tuple(question for _, question in found) for kind, found in asked.items()},
            num_edits=len(edits),
            owners={kind: tuple(edit.prompt for edit, _ in found) for kind, found in asked.items()},
            portability_kinds=tuple(probe.kind for _, probe, _ in probes),
        )

    @property
    def kinds(self) -> dict[str, tuple[Question, ...]]:
        """The questions by the name of their kind."""
        return {name: getattr(self, name) for name in KINDS}

    @property
    def all(self) -> tuple[Question, ...]:
        """The distinct questions of all kinds."""
        return tuple(dict.fromkeys(question for asked in self.kinds.values() for question in asked))

    @property
    def prompts(self) -> list[Prompt]:
        """The distinct prompts of all kinds, each of which `score` needs an answer to."""
        return list(dict.fromkeys(question.prompt for question in self.all))

    def owned(self, kind: str, values: Iterable[float]) -> list[OwnedRatio]:
        """Attach the owning edit to one value for each question of a kind, in the order of the questions."""
        return [OwnedRatio(owner, float(value)) for owner, value in zip(self.owners[kind], values, strict=True)]


def question_of(probe: Probe, prompt: Prompt) -> Question:
    """Return a prompt of a probe as a question that its target answers, or one of its aliases."""
    return Question(prompt, probe.target, (probe.target, *probe.aliases) if probe.aliases else ())


def _made_again(edits: Sequence[Edit], current: Sequence[Edit]) -> list[Edit]:
    """Return those of the current edits whose prompts an earlier edit gave another target."""
    targets: dict[Hashable, set[str]] = {}
    for edit in edits:
        for key in edit.keys:
            targets.setdefault(key, set()).add(same_text(edit.target))
    return [edit for edit in current if any(len(targets[key]) > 1 for key in edit.keys)]


def _is_latest(edit: Edit, prompt: Prompt, latest: Mapping[Hashable, Edit]) -> bool:
    """Say if the latest edit of a prompt has the target of this one."""
    return same_text(latest[prompt_key(prompt)].target) == same_text(edit.target)
