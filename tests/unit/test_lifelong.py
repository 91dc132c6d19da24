from __future__ import annotations

import pytest
import torch

from errata.capture import capture
from errata.delta import LowRank, WeightDelta
from errata.edit import Edit, EditRejected, batches_of
from errata.editors.editor import Editor, EditorState
from errata.encode import encode
from errata.generate import HFGenerator
from errata.guard import Guard
from errata.lifelong import run
from errata.model import find_matrices, load

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]

ABSENT = "rejected by the editor"


class Gradient(Editor):
    """A long gradient step, enough to try the loop; refuses one prompt."""

    def start(self, model, spec):
        return EditorState()

    def edit(self, model, batch, state):
        if ABSENT in batch.prompts:
            raise EditRejected(ABSENT, edit=0)
        encoded = encode(model.tokenizer, batch.prompts, batch.targets)
        captured, _ = capture(model.module, encoded, MATRICES)
        parts = {name: LowRank(-20 * rows.grads_TO.T, rows.keys_TI.T) for name, rows in captured.items()}
        return WeightDelta(parts), EditorState(state.num_edits + len(batch))


@pytest.mark.parametrize("shared", [True, False])
def test_the_loop_serves_each_version_and_goes_on_where_it_was(tiny_model, ledger, world, model_dir, shared):
    spec = find_matrices(tiny_model.module, MATRICES)
    generator = HFGenerator(tiny_model if shared else load(model_dir), spec, ledger)
    edits, guard = world.edits("test", 4), Guard(max_relative_norm=1e6)
    first = list(run(tiny_model, spec, Gradient(), batches_of(edits[:2], 1), ledger, generator, guard, "test"))
    again = generator if shared else HFGenerator(load(model_dir), spec, ledger)
    model = tiny_model if shared else load(model_dir)
    second = list(run(model, spec, Gradient(), batches_of(edits[2:], 1), ledger, again, guard))
    assert [version.number for version in (*first, *second)] == [1, 2, 3, 4]
    assert (again.version, ledger.state(4).num_edits, ledger.version(4).editor) == (4, 4, "Gradient")
    plain = HFGenerator(load(model_dir), spec, ledger)
    for name in MATRICES:
        weights = [m.module.get_submodule(name).weight for m in (model, again.language_model, plain.language_model)]
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[0], weights[2])


def test_what_is_refused_leaves_no_trace(tiny_model, ledger, world):
    spec = find_matrices(tiny_model.module, MATRICES)
    generator = HFGenerator(tiny_model, spec, ledger)
    edits = world.edits("test", 2)
    edits[0] = Edit(ABSENT, "x")
    refused = []
    loop = run(
        tiny_model, spec, Gradient(), batches_of(edits, 1), ledger, generator, Guard(1e-9), "", lambda *why: refused.append(why)
    )
    assert list(loop) == []
    assert [batch.prompts for batch, _ in refused] == [[ABSENT], [edits[1].prompt]]
    assert "would change" in str(refused[1][1])
    assert (ledger.newest, generator.version) == (0, 0)
    with pytest.raises(EditRejected, match="would change"):
        list(run(tiny_model, spec, Gradient(), batches_of(edits[1:], 1), ledger, generator, Guard(1e-9)))
