"""Tiers: a memory answers by an edit as soon as it is posted, and the weights learn it later.

Paper: none. Weights cost an answer nothing and take seconds for an edit, which may fail; a memory takes milliseconds and costs
every answer a look-up. `edit` writes the memory alone. `consolidate` makes a step of the weights' editor for some edits and
drops their records, as one change. `errata/history/consolidation.py` asks the model which edits may leave the memory.
A record decides before the model reads a prompt, so it also wins over an older answer of the weights.
Remembers: what both editors remember; the memory's edits are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch

from errata.delta.kinds import Delta, joint, weights_alone
from errata.delta.memory_delta import MemoryDelta, one_change
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.edit_memory import encoder
from errata.edit_memory.bank import READ_BEFORE, Bank, Kind, Record
from errata.edit_memory.hooks import bank_of, reading
from errata.editors.editor import Editor
from errata.editors.repeated import edit_repeatedly
from errata.editors.state import EditorState, GrowingTensor, JoinedTensors
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.text.rules import fact_of

WEIGHTS, MEMORY = "weights", "memory"  # Before the names of a tier's tensors in the state, with a sign between.
NUM_EDITS = "weights_edits"  # The number of edits that the weights' editor counts.
MAX_RECORDS = 100_000


@dataclass(frozen=True)
class Tiers(Editor):
    """An editor of weights and one of a memory; of a new fact, the memory holds at most `max_records`."""

    weights: Editor
    memory: Editor
    max_records: int = MAX_RECORDS

    writes: ClassVar[Literal["weights", "memory"]] = "memory"

    def __post_init__(self) -> None:
        if self.weights.writes == "memory":
            raise ValueError(f"{type(self.weights).__name__} keeps its edits in a memory: give an editor of weights")
        if self.memory.kind not in READ_BEFORE:
            raise ValueError(
                f"{type(self.memory).__name__} is no memory that is read before the model, and changes of weights would change "
                "what the others compare: give answer or SCR"
            )
        if self.max_records < 1:
            raise ValueError(f"max_records is the number of records that the memory holds, at least 1, not {self.max_records}")
        object.__setattr__(self, "memory", replace(cast(Any, self.memory), modules=self.weights.modules))

    @property
    def kind(self) -> Kind | None:  # type: ignore[override]
        return self.memory.kind

    @property
    def modules(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.weights.modules

    @property
    def max_batch(self) -> int:
        """The number of edits that the memory takes at most."""
        return int(getattr(self.memory, "max_batch", 1))

    def expect(self, edits: Iterable[Edit]) -> None:
        """Let the memory begin what it can of edits that will be made soon."""
        begin: Callable[[Iterable[Edit]], None] | None = getattr(self.memory, "expect", None)
        if begin is not None:
            begin(edits)

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        return joined(self.weights.start(model, spec), self.memory.start(model, spec))

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[Delta, EditorState]:
        of_weights, of_memory = split(state)
        delta, after = self.memory.edit(model, batch, of_memory, cache)
        assert isinstance(delta, MemoryDelta)
        bank = bank_of(model.module)
        num_records = len(delta.after(bank))
        if num_records > self.max_records and num_records > (0 if bank is None else len(bank)):
            raise EditRejected(
                f"the memory is full: it would hold {num_records:,} records, and holds at most {self.max_records:,}. Post "
                "again when edits have moved into the weights, or set max_records (`errata serve --set`)",
                code=Code.MEMORY_FULL,
            )
        return delta, joined(of_weights, after)

    def consolidate(
        self, model: LanguageModel, rounds: Sequence[EditBatch], state: EditorState, change: MemoryDelta
    ) -> tuple[Delta, EditorState]:
        """Return the weights' step for edits, round by round, together with a change of the memory.

        The weights' editor sees the model without its memory. Without rounds the weights stay. Raises `EditRejected`.
        """
        of_weights, of_memory = split(state)
        if not rounds:
            return change, state
        with without_memory(model):
            first, *again = rounds
            made, after = edit_repeatedly(self.weights, model, first, of_weights, again)
        return joint(weights_alone(made, "a tier"), change), joined(after, of_memory)

    def leaving(self, model: LanguageModel, gone: Collection[str], back: Sequence[Edit], state: EditorState) -> MemoryDelta:
        """Return the change of the memory that drops the records of the edits `gone` and holds those `back` again."""
        assert self.kind is not None
        facts = tuple(record.fact for record in records_of(bank_of(model.module), gone))
        drop = MemoryDelta(self.kind, encoder.NAME, (), facts)
        if not back:
            return drop
        again, _ = self.memory.edit(model, EditBatch(tuple(back)), split(state)[1])
        assert isinstance(again, MemoryDelta)
        return one_change([drop, again])


def without_memory(model: LanguageModel) -> AbstractContextManager[None]:
    """Make the model read no memory inside a block."""
    return reading(model.module, Bank("answer", encoder.NAME))


def records_of(bank: Bank | None, ids: Collection[str]) -> Iterator[Record]:
    """Yield the records of the edits with these ids; past records, which answer about their own time, are not among them."""
    yield from (record for record in bank or () if record.edit in ids and not record.is_past)


def is_in_memory(edit: Edit, bank: Bank | None) -> bool:
    """Say if a bank has a record of one of an edit's prompts."""
    return bank is not None and any(fact_of(prompt) in bank.records for prompt in edit.prompts)


def split(state: EditorState) -> tuple[EditorState, EditorState]:
    """Return the states of the weights' editor and of the memory's."""
    of_weights, of_memory = (
        state.without_prefix(f"{name}|", cast(Mapping[str, Any], state.derived.get(name, {}))) for name in (WEIGHTS, MEMORY)
    )
    num_edits = int(state.tensors[NUM_EDITS]) if NUM_EDITS in state.tensors else 0
    return replace(of_weights, num_edits=num_edits), of_memory


def joined(of_weights: EditorState, of_memory: EditorState) -> EditorState:
    """Return the state of both editors."""
    blocks = {
        f"{name}|{key}": block
        for name, one in ((WEIGHTS, of_weights), (MEMORY, of_memory))
        for key, block in one.blocks.items()
    }
    count = {NUM_EDITS: GrowingTensor(torch.tensor(of_weights.num_edits))}
    derived = {name: one.derived for name, one in ((WEIGHTS, of_weights), (MEMORY, of_memory)) if one.derived}
    return EditorState(of_memory.num_edits, JoinedTensors({**blocks, **count}), derived)
