"""UltraEdit against its equations in primal form and fp64, over two batches."""

from __future__ import annotations

import torch

from errata.delta.side_branch import applied
from errata.edit import EditBatch, batches_of
from errata.editors import EditorState
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.model.capture import capture
from errata.model.encoding import encode
from errata.model.language_model import LanguageModel
from errata.testbed.world import World

NAME = "model.layers.1.mlp.down_proj"
BATCHES = list(batches_of(World(20).edits("test", 8), 4))


def rows(model: LanguageModel, batch: EditBatch) -> torch.Tensor:
    captured, _ = capture(model.module, encode(model.renderer, batch.prompts, batch.targets), [NAME])
    return torch.cat([captured[NAME].keys_TI, captured[NAME].grads_TO], 1).double()


def expected(seen: list[torch.Tensor], num_in: int, step: float, ridge: float) -> torch.Tensor:
    every = torch.cat(seen)
    now = (seen[-1] - every.mean(0)) / (every.std(0) + 1e-7)
    keys_nI, k_nI, g_nO = seen[-1][:, :num_in], now[:, :num_in], now[:, num_in:]
    wanted_nO = -step * k_nI.square().sum(1, keepdim=True) * g_nO
    gram_II = keys_nI.T @ keys_nI + ridge * torch.eye(num_in, dtype=torch.float64)
    return torch.linalg.solve(gram_II, keys_nI.T @ wanted_nO).T


def test_each_of_two_batches_is_the_published_solve(tiny_model: LanguageModel) -> None:
    editor, state, seen = UltraEdit((NAME,), step=1e-4, ridge=0.5), EditorState(), []
    num_in = tiny_model.module.get_submodule(NAME).in_features
    first, state = editor.edit(tiny_model, BATCHES[0], state)
    seen.append(rows(tiny_model, BATCHES[0]))
    torch.testing.assert_close(first.parts[NAME].dense().double(), expected(seen, num_in, 1e-4, 0.5), rtol=1e-3, atol=1e-6)
    with applied(tiny_model.module, first):
        second, state = editor.edit(tiny_model, BATCHES[1], state)
        seen.append(rows(tiny_model, BATCHES[1]))
    torch.testing.assert_close(second.parts[NAME].dense().double(), expected(seen, num_in, 1e-4, 0.5), rtol=1e-3, atol=1e-6)
    assert state.num_edits == 8


def test_a_single_edit_as_the_first_has_a_finite_delta(tiny_model: LanguageModel) -> None:
    delta, _ = UltraEdit((NAME,)).edit(tiny_model, EditBatch(BATCHES[0].edits[:1]), EditorState())
    assert delta.is_finite


def test_a_preset_has_the_published_settings_and_takes_other_fields() -> None:
    editor = UltraEdit.preset("llama3_8b", step=2e-6)
    assert (editor.step, editor.ridge, len(editor.modules)) == (2e-6, 1.0, 12)
