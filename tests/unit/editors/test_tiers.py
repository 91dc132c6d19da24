"""Tiers: a memory in front of weights, on a small model and without a service."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.joint_delta import JointDelta
from errata.delta.memory_delta import MemoryDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.edit_memory.hooks import bank_of
from errata.editors import make_editor, name_of
from errata.editors.build import tier_settings, with_memory
from errata.editors.memory_based.answer import AnswerMemory
from errata.editors.memory_based.scr import SCR
from errata.editors.memory_based.state import StateMemory
from errata.editors.state import EditorState
from errata.editors.tiers import Tiers, is_in_memory, joined, split
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from tests.editors_under_test import editor_under_test

EDITS = [replace(edit, id=f"e{i}") for i, edit in enumerate(World(20).edits("test", 4))]


@pytest.fixture
def tiers(tiny_model: LanguageModel) -> Tiers:
    return with_memory(editor_under_test("RLEdit", tiny_model), "answer")


def ledger_of(tiers: Tiers, model: LanguageModel) -> tuple[EditedModel, EditorState]:
    spec = find_matrices(model.module, tiers.modules)
    return EditedModel(model.module, spec), tiers.start(model, spec)


def test_an_edit_writes_the_memory_and_a_consolidation_both(tiers: Tiers, tiny_model: LanguageModel) -> None:
    edited, state = ledger_of(tiers, tiny_model)
    delta, state = tiers.edit(tiny_model, EditBatch(tuple(EDITS)), state)
    assert isinstance(delta, MemoryDelta) and state.num_edits == 4 and split(state)[0].num_edits == 0
    edited.add(delta)
    try:
        bank = bank_of(tiny_model.module)
        change = tiers.leaving(tiny_model, {"e0", "e2", "unknown"}, (), state)
        rounds = [EditBatch((EDITS[0], EDITS[2])), EditBatch((EDITS[2],))]
        both, after = tiers.consolidate(tiny_model, rounds, state, change)
        assert isinstance(both, JointDelta) and len(both.memory.dropped) == 2 and not both.memory.records
        assert bank_of(tiny_model.module) is bank, "the model's memory is there again"
        alone = editor_under_test("RLEdit", tiny_model)
        edited.set([])  # The weights' step does not depend on the memory.
        made, _ = alone.edit(tiny_model, rounds[0], alone.start(tiny_model, find_matrices(tiny_model.module, alone.modules)))
        (part,), (own,) = both.weights.parts.values(), made.parts.values()  # type: ignore[union-attr]
        assert part.rank > own.rank and split(after)[0].num_edits == 3 and after.num_edits == 4
        edited.add(delta)
        edited.add(both)
        bank = bank_of(tiny_model.module)
        assert [is_in_memory(edit, bank) for edit in EDITS] == [False, True, False, True]
        back = tiers.leaving(tiny_model, ("e1",), (EDITS[0],), after)
        assert [record.edit for record in back.records] == ["e0"] and len(back.dropped) == 1
        same, still = tiers.consolidate(tiny_model, [], after, back)
        assert same is back and still is after, "without a round the weights stay"
    finally:
        edited.set([])


def test_the_state_of_both_editors_survives_a_file(tiers: Tiers, tiny_model: LanguageModel, tmp_path: object) -> None:
    _, state = ledger_of(tiers, tiny_model)
    change = MemoryDelta("answer", "all-MiniLM-L6-v2")
    for edit in EDITS[:2]:
        _, state = tiers.consolidate(tiny_model, [EditBatch((edit,))], state, change)
    path = f"{tmp_path}/state.safetensors"
    state.save(path)
    read = EditorState.load(path)
    of_weights, of_memory = split(read)
    assert (of_weights.num_edits, of_memory.num_edits) == (2, 0) and set(of_memory.tensors) == {"thresholds"}
    assert all(torch.equal(tensor, split(state)[0].tensors[name]) for name, tensor in of_weights.tensors.items())
    again = joined(of_weights, of_memory)
    one, other = (tiers.consolidate(tiny_model, [EditBatch((EDITS[2],))], each, change)[0] for each in (state, again))
    assert one.digest() == other.digest(), "what is derived from a saved state is the same"


def test_a_full_memory_refuses_new_facts_and_takes_corrections_of_those_it_holds(
    tiers: Tiers, tiny_model: LanguageModel
) -> None:
    tiers = replace(tiers, max_records=2)
    edited, state = ledger_of(tiers, tiny_model)
    delta, state = tiers.edit(tiny_model, EditBatch(tuple(EDITS[:2])), state)
    edited.add(delta)
    try:
        with pytest.raises(EditRejected, match="holds at most 2") as refused:
            tiers.edit(tiny_model, EditBatch((EDITS[2],)), state)
        assert refused.value.code is Code.MEMORY_FULL
        tiers.edit(tiny_model, EditBatch((replace(EDITS[0], target="goose"),)), state)
    finally:
        edited.set([])


def test_what_cannot_be_two_tiers_is_refused_with_the_reason(tiny_model: LanguageModel) -> None:
    weights = editor_under_test("RLEdit", tiny_model)
    for wrong, says in (
        (lambda: Tiers(AnswerMemory(), AnswerMemory()), "AnswerMemory keeps its edits in a memory"),
        (lambda: Tiers(weights, StateMemory()), "StateMemory is no memory that is read before the model"),
        (lambda: Tiers(weights, SCR(), max_records=0), "at least 1, not 0"),
        (lambda: with_memory(weights, "RTD"), "RTD is no memory that is read before weights: give one of SCR, IKE, answer"),
        (lambda: with_memory(weights, "nothing"), "no editor is named 'nothing'"),
        (lambda: with_memory(weights, "SERAC"), "SERAC is no memory"),
        (lambda: with_memory(weights, "answer", {"memory.treshold": "1"}), "treshold"),
    ):
        with pytest.raises(ValueError, match=says):
            wrong()
    made = with_memory(make_editor("UltraEdit"), "SCR", {"memory.threshold": "0.7", "max_records": "9"})
    assert name_of(made) == "UltraEdit+SCR" and made.max_records == 9 and made.kind == "text"
    assert isinstance(made.memory, SCR) and made.memory.threshold == 0.7 and made.memory.modules == made.modules
    assert tier_settings({"step": "1", "memory.threshold": "1"}) == ({"step": "1"}, {"memory.threshold": "1"})


def test_the_memory_can_begin_what_it_needs_of_coming_edits(tiers: Tiers) -> None:
    tiers.expect([Edit("Who is it?", "x", form="chat")])
    assert tiers.max_batch == AnswerMemory().max_batch
