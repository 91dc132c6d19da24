"""The stream with harmful edits: where they are inserted, and the editor that makes them."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.guarding import BATCH_SIZE, GIANT, Misset, kind_of, poisoned
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch
from errata.editors.closed_form.rome import ROME
from errata.editors.fine_tuning.locft import LocFT
from errata.editors.state import EditorState
from errata.guard.bisection import BatchBisection
from errata.model.matrices import find_matrices
from errata.testbed.world import World

INNER, HARD = ("layers.0.mlp.down_proj",), ("layers.1.mlp.down_proj",)


def test_poison_is_inserted_among_healthy_edits_in_order():
    world = World(60)
    healthy = world.edits("test", 100)
    batches = poisoned(healthy, world, seed=0)
    every = [edit for batch in batches for edit in batch]
    assert [edit for edit in every if kind_of(edit) == "healthy"] == healthy
    kinds = Counter(map(kind_of, every))
    assert kinds == {"healthy": 100, "contradiction": 2, "hard": 2, "giant": 1}
    assert kinds.total() - 100 == pytest.approx(0.05 * kinds.total(), abs=1)
    for batch in batches:
        assert {kind_of(batch.edits[i]) for i in BatchBisection(batch.edits).rivals} <= {"contradiction"}
    assert sum(len(BatchBisection(batch.edits).rivals) for batch in batches) == kinds["contradiction"]
    assert len(batches) == 100 // BATCH_SIZE
    assert poisoned(healthy, world, seed=0) == batches != poisoned(healthy, world, seed=1)


def test_a_misset_editor_scales_giant_batches_and_gives_hard_edits_to_rome(tiny_model, world, monkeypatch):
    edits = world.edits("test", 2)
    inner = LocFT(modules=INNER, num_epochs=2)
    asked = []

    def rome_edit(self, model, batch, state):
        asked.append(batch.edits)
        return WeightDelta({}), state

    monkeypatch.setattr(ROME, "edit", rome_edit)
    editor = Misset((*INNER, *HARD), inner, ROME(modules=HARD), EditorState())
    state = editor.start(tiny_model, find_matrices(tiny_model.module, editor.modules))
    usual, _ = editor.edit(tiny_model, EditBatch(tuple(edits)), state)
    hard = Edit("the river", "Oslo", subject="the", id="hard-0")
    giant, _ = editor.edit(tiny_model, EditBatch((edits[0], hard, Edit(edits[1].prompt, edits[1].target, id="giant-0"))), state)
    (name,) = usual.norms()
    assert giant.norms()[name] == pytest.approx(GIANT * usual.norms()[name], rel=1e-4)
    assert asked == [(hard,)]
