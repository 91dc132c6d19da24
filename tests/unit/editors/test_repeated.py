"""Edits made again on top of what they changed."""

from __future__ import annotations

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.side_branch import applied
from errata.edit import EditBatch
from errata.editors.editor import Editor
from errata.editors.repeated import edit_again, edit_repeatedly
from errata.model.capture import capture
from errata.model.encoding import encode
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.model.prefix_cache import BatchCache
from errata.testbed.world import World
from tests.editors_under_test import editor_under_test

NAMES = ("UltraEdit", "RLEdit", "MEMIT", "ROME", "FT-L")


@pytest.fixture(params=NAMES)
def editor(request: pytest.FixtureRequest, tiny_model: LanguageModel) -> Editor:
    return editor_under_test(request.param, tiny_model)


@pytest.fixture
def batch() -> EditBatch:
    return EditBatch(tuple(World(20).edits("test", 1)))


def test_an_edit_made_again_leaves_the_weights_and_counts_in_the_state(
    editor: Editor, tiny_model: LanguageModel, batch: EditBatch
) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    made = editor.edit(tiny_model, batch, editor.start(tiny_model, find_matrices(tiny_model.module, editor.modules)))
    delta, state = edit_again(editor, tiny_model, batch, made)
    for name, tensor in tiny_model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.module.modules())
    assert (made[1].num_edits, state.num_edits) == (1, 2)
    assert set(delta.parts) == set(made[0].parts) and delta.is_finite and delta.digest() != made[0].digest()


def test_each_pass_makes_the_answer_likelier(editor: Editor, tiny_model: LanguageModel, batch: EditBatch) -> None:
    encoded = encode(tiny_model.renderer, batch.prompts, batch.targets)
    made = editor.edit(tiny_model, batch, editor.start(tiny_model, find_matrices(tiny_model.module, editor.modules)))
    losses = [float(capture(tiny_model.module, encoded, tuple(made[0].parts))[1].mean())]
    for delta in (made[0], edit_again(editor, tiny_model, batch, made)[0]):
        with applied(tiny_model.module, delta):
            losses.append(float(capture(tiny_model.module, encoded, tuple(delta.parts))[1].mean()))
    assert losses[0] > losses[1] > losses[2]


def test_passes_one_by_one_equal_those_together_also_with_a_cache(
    editor: Editor, tiny_model: LanguageModel, batch: EditBatch
) -> None:
    """A revert repeats without the cache what was made with one; the bits are the same."""
    spec = find_matrices(tiny_model.module, editor.modules)
    state = editor.start(tiny_model, spec)
    together, after = edit_repeatedly(editor, tiny_model, batch, state, [batch, batch])
    for cache in (None, BatchCache.of(tiny_model, spec.names, batch)):
        made = editor.edit(tiny_model, batch, state, cache)
        for _ in range(2):
            made = edit_again(editor, tiny_model, batch, made, cache)
        assert made[0].digest() == together.digest() and made[1].num_edits == after.num_edits == 3
    once, _ = edit_repeatedly(editor, tiny_model, batch, state, [])
    assert once.digest() == editor.edit(tiny_model, batch, state)[0].digest()


def test_a_second_pass_is_the_edit_of_the_edited_model(tiny_model: LanguageModel, batch: EditBatch) -> None:
    editor = editor_under_test("UltraEdit", tiny_model)
    spec = find_matrices(tiny_model.module, editor.modules)
    made = editor.edit(tiny_model, batch, editor.start(tiny_model, spec))
    both, _ = edit_again(editor, tiny_model, batch, made)
    edited = EditedModel(tiny_model.module, spec)
    edited.add(made[0])
    second, _ = editor.edit(tiny_model, batch, made[1])
    for name, part in both:
        expected = made[0].parts[name].dense() + second.parts[name].dense()
        assert torch.allclose(part.dense(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
