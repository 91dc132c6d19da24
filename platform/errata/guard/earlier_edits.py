"""Earlier edits are asked of every candidate: all that the version holds or, of more than `size`, those asked longest ago.

What the model says to an edit is kept as tokens, its own wording included. An update that leaves these tokens as they are is
recognised in one teacher-forced pass, whose activations before the first edited matrix are cached; only the others are
generated. So each edit is asked within N / `size` versions, and most of them cost no generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from errata.delta.kinds import Delta
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch
from errata.guard.held_edits import HeldEdit, HeldEdits, Tokens
from errata.model.encoding import Encoded, GivenAnswer
from errata.model.language_model import LanguageModel
from errata.model.packing import packed
from errata.model.prefix_cache import PrefixCache

MAX_GROUP, MAX_WIDER = 32, 1.5  # Edits of one pass, and how much longer its longest text may be than its shortest.


@dataclass(frozen=True)
class Said:
    """Answer of a model to an edit: the tokens after each prompt if it answers by its target, otherwise a wrong text."""

    written: tuple[Tokens, ...] | None
    wrong: str | None = None

    @property
    def is_answered(self) -> bool:
        return self.wrong is None


class EditAnswers(Protocol):
    """Answers to edits of a model with an update beside its weights."""

    model: LanguageModel
    prefix_cache: PrefixCache

    def remembered(self, edits: Sequence[Edit], delta: Delta) -> list[Said | None]:
        """Return what the memory with an update says to edits; None where the model must be asked."""

    def texts_answered(self, cache: PrefixCache, encoded: Encoded, delta: Delta) -> list[bool] | None:
        """Say for each text if exactly its answer would be generated; None if a log probability is not finite."""

    def said(self, batch: EditBatch, delta: Delta) -> list[Said]:
        """Generate the answers to each edit."""


@dataclass(eq=False)
class _Group:
    """Edits that are asked in one pass: their texts follow one another."""

    members: list[HeldEdit]
    written: list[tuple[Tokens, ...]]
    encoded: Encoded

    @property
    def current(self) -> list[HeldEdit]:
        """The members whose wording is still that of the texts."""
        pairs = zip(self.members, self.written, strict=True)
        return [held for held, written in pairs if held.written == written]


class EarlierEdits:
    """The edits of the model's version, with what it says to each of them."""

    def __init__(self, answers: EditAnswers, size: int, seed: int) -> None:
        self.answers, self.size = answers, size
        self.held = HeldEdits(seed)
        self.groups: list[_Group] = []

    def at_version(self, edits: Iterable[Edit]) -> None:
        """Set the edits, in order, that the version holds."""
        self.held.set(edits)

    def hold(self, edits: Iterable[Edit]) -> None:
        """Hold further edits that the version answers, unless it holds others of the same prompts."""
        self.held.add_answered(edits)

    def next(self, batch: EditBatch) -> list[HeldEdit]:
        """Return the edits that a candidate with this batch is asked: none that the batch replaces."""
        return self.held.next(self.size, frozenset(key for edit in batch for key in edit.keys))

    def others(self, batch: EditBatch) -> list[HeldEdit]:
        """Return the edits that a version with this batch would still hold: all that the batch does not replace."""
        return self.held.without(key for edit in batch for key in edit.keys)

    def ask(self, chosen: Sequence[HeldEdit], delta: Delta) -> dict[HeldEdit, Said] | None:
        """Ask the model with an update these edits; None if a log probability is not finite."""
        remembered = dict(zip(chosen, self.answers.remembered([held.edit for held in chosen], delta), strict=True))
        others = [held for held, said in remembered.items() if said is None]
        asked = self._ask_model(others, delta) if others else {}
        if asked is None:
            return None
        return {held: said or asked[held] for held, said in remembered.items()}

    def _ask_model(self, chosen: Sequence[HeldEdit], delta: Delta) -> dict[HeldEdit, Said] | None:
        """Run the model with an update on these edits; None if a log probability is not finite."""
        same = set[HeldEdit]()
        for group in self._groups_of(chosen):
            right = self.answers.texts_answered(self.answers.prefix_cache, group.encoded, delta)
            if right is None:
                return None
            rows, current = iter(right), set(group.current)
            same |= {held for held in group.members if all([next(rows) for _ in held.edit.prompts]) and held in current}
        others = [held for held in chosen if held not in same]
        generated = self.answers.said(EditBatch(tuple(held.edit for held in others)), delta) if others else []
        found = dict(zip(others, generated, strict=True))
        return {held: Said(held.written) if held in same else found[held] for held in chosen}

    def know(self, chosen: Sequence[HeldEdit]) -> bool:
        """Ask the version itself these edits; False if a log probability is not finite."""
        found = self.ask(chosen, WeightDelta({})) if chosen else {}
        if found is None:
            return False
        for held, said in found.items():
            self._note(held, said)
        return True

    def committed(self, batch: EditBatch, said: Mapping[Edit, Said], is_exact: bool, keeps_others: bool = False) -> None:
        """Hold the edits of a batch, too. `said` is what the version now says; without `is_exact`, its weights were rounded.

        With `keeps_others`, every other edit is answered as before.
        """
        self.held.add(batch, keeps_others)
        for edit, one in said.items():
            if (held := self.held.by_edit.get(edit)) is not None:
                if len(batch) and held.is_answered and not one.is_answered:
                    held.num_repairs = 0  # New edits have lost it; tries that a repair needed before do not count.
                self._note(held, one)
        if not is_exact:
            for held in self.held:
                held.is_answered = None

    def _note(self, held: HeldEdit, said: Said) -> None:
        held.is_answered, held.says, held.asked_at = said.is_answered, said.wrong, self.held.version
        if said.written is not None:
            held.written = said.written

    def _groups_of(self, chosen: Sequence[HeldEdit]) -> list[_Group]:
        """Return groups that hold the edits, which are made for those that are in none."""
        self._forget_old()
        grouped = {held for group in self.groups for held in group.current}
        rows = [(self._rows(held), held) for held in chosen if held not in grouped]
        rows.sort(key=lambda row: _length(row[0]))
        while rows:
            widest = MAX_WIDER * _length(rows[0][0])
            count = next((i for i, (own, _) in enumerate(rows) if _length(own) > widest or i == MAX_GROUP), len(rows))
            own, rows = rows[:count], rows[count:]
            tokens = packed(self.answers.model, [row for many, _ in own for row in many])
            members = [held for _, held in own]
            self.groups.append(_Group(members, [held.written or () for held in members], tokens))
        wanted = set(chosen)
        return [group for group in self.groups if not wanted.isdisjoint(group.current)]

    def _forget_old(self) -> None:
        """Drop the groups of which less than half is still held in the same wording."""
        live = set(self.held)
        for group in list(self.groups):
            if 2 * len(live.intersection(group.current)) < len(group.members):
                self.groups.remove(group)
                self.answers.prefix_cache.forget(group.encoded)

    def _rows(self, held: HeldEdit) -> list[GivenAnswer]:
        """Return the tokens of each prompt and of its known answer, at first the wording that the edit wants."""
        renderer = self.answers.model.renderer
        if held.written is None:
            wanted = [(prompt, held.edit.wording(prompt)) for prompt in held.edit.prompts]
            held.written = tuple(tuple(answer) for _, answer in renderer.rows(wanted))
        return [(list(renderer.ids(p)), list(ids)) for p, ids in zip(held.edit.prompts, held.written, strict=True)]


def _length(rows: Sequence[GivenAnswer]) -> int:
    return max(len(given) + len(answer) for given, answer in rows)
