"""The questions that score a batch of edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from errata.edit import Edit
from errata.evaluate.bootstrap import OwnedRatio

Question = tuple[str, str]  # prompt, answer


@dataclass(frozen=True)
class Questions:
    """(prompt, answer) pairs by kind. Of two edits of one prompt, the later counts; a neighbour that is edited is none.

    `owners` has, for each kind, the prompt of the edit that each question is about.
    """

    efficacy: tuple[Question, ...]
    generalisation: tuple[Question, ...]
    locality: tuple[Question, ...]
    portability: tuple[Question, ...]
    retention: tuple[Question, ...]
    num_edits: int
    retention_every: tuple[Question, ...] = ()
    owners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    portability_kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, edits: Sequence[Edit], first: Sequence[Edit] = (), earlier: Sequence[Edit] = ()) -> Questions:
        """`first` are the earliest edits ever made and `earlier` a sample of all batches since; neither need be in `edits`."""
        latest = {edit.prompt: edit for edit in (*first, *earlier, *edits)}
        current = list({edit.prompt: edit for edit in edits}.values())
        probes = [(edit, probe) for edit in current for probe in edit.portability]
        asked = {
            "efficacy": [(edit, (edit.prompt, edit.target)) for edit in current],
            "generalisation": [(edit, (rephrasing, edit.target)) for edit in current for rephrasing in edit.rephrasings],
            "locality": [(e, (p.prompt, p.target)) for e in current for p in e.locality if p.prompt not in latest],
            "portability": [(edit, (probe.prompt, probe.target)) for edit, probe in probes],
            "retention": [(edit, (edit.prompt, edit.target)) for edit in first],
            "retention_every": [(edit, (edit.prompt, edit.target)) for edit in earlier],
        }
        for kind in ("retention", "retention_every"):
            asked[kind] = [(edit, question) for edit, question in asked[kind] if latest[edit.prompt].target == edit.target]
        return cls(
            **{kind: tuple(question for _, question in found) for kind, found in asked.items()},
            num_edits=len(edits),
            owners={kind: tuple(edit.prompt for edit, _ in found) for kind, found in asked.items()},
            portability_kinds=tuple(probe.kind for _, probe in probes),
        )

    @property
    def kinds(self) -> dict[str, tuple[Question, ...]]:
        names = ("efficacy", "generalisation", "locality", "portability", "retention", "retention_every")
        return {name: getattr(self, name) for name in names}

    @property
    def all(self) -> tuple[Question, ...]:
        """Each question once."""
        return tuple(dict.fromkeys(question for asked in self.kinds.values() for question in asked))

    @property
    def prompts(self) -> list[str]:
        """Each prompt once."""
        return list(dict.fromkeys(prompt for prompt, _ in self.all))

    def marks(self, kind: str, values: Iterable[float]) -> list[OwnedRatio]:
        """A value for each question of a kind, in order, with whose question it is."""
        return [(owner, float(value), 1.0) for owner, value in zip(self.owners[kind], values, strict=True)]


def prompts_of(edits: Sequence[Edit], first: Sequence[Edit] = (), earlier: Sequence[Edit] = ()) -> list[str]:
    """Every prompt that `score` needs an answer to, once."""
    return Questions.of(edits, first, earlier).prompts
