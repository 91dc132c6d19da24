"""Every architecture: its matrices are found, captured, changed and exported, and every kind of editor works on it.

Results are compared with plain hooks and with gradients of the whole model.

I in-features, O out-features, B texts, S sequence, T answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch
from errata.editors import Editor
from errata.editors.closed_form.moments import Moments
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.fine_tuning.locft import LocFT
from errata.editors.hypernet.malmen import MALMEN
from errata.editors.hypernet.rledit import RLEdit
from errata.ledger.export import export
from errata.model.capture import capture
from errata.model.encoding import Encoded, answer_log_probs, answer_nll, encode
from errata.model.language_model import LanguageModel, load
from errata.model.matrices import editable_matrices, find_matrices, fused_partners
from tests.editors_under_test import SMALL_ALPHAEDIT, SMALL_MEMIT, SMALL_ROME, learned, measured
from tests.tiny_models import ARCHITECTURES, NUM_BLOCKS, WORLD, Architecture, make_tiny, save_tiny
from tests.unit.editors.test_intervention import check_losses
from tests.unit.editors.test_locate_then_edit import check_memit
from tests.unit.small_models import a_model, relative

BATCH = EditBatch(tuple(WORLD.edits("test", 4)))
IN_FP32 = 1e-3


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def architecture(name: str) -> Architecture:
    return ARCHITECTURES[name]


@pytest.fixture
def model(name: str) -> LanguageModel:
    """Make the model for each test, because some tests change its weights."""
    return make_tiny(name)


def text_of(model: LanguageModel) -> Encoded:
    return encode(model.renderer, BATCH.prompts, BATCH.targets)


def logits(model: LanguageModel) -> Tensor:
    return answer_log_probs(model.module, text_of(model))


def noise(model: LanguageModel, names: Sequence[str], rank: int = 2) -> WeightDelta:
    generator = torch.Generator().manual_seed(1)
    spec = find_matrices(model.module, names)

    def factor(rows: int) -> Tensor:
        return 0.3 * torch.randn(rows, rank, generator=generator)

    return WeightDelta({m.name: LowRank(factor(m.num_out), factor(m.num_in)) for m in spec.matrices})


def test_every_linear_module_of_a_block_is_found_and_nothing_else(model: LanguageModel, architecture: Architecture) -> None:
    spec = editable_matrices(model.module)
    assert spec.names == tuple(architecture.name(m, block) for block in range(NUM_BLOCKS) for m in architecture.matrices)
    assert spec.kinds == tuple(architecture.name(m, "*") for m in architecture.matrices)
    assert {matrix.transposed for matrix in spec.matrices} == {architecture.transposed}
    for matrix in architecture.matrices:
        assert find_matrices(model.module, [f"1.{matrix}"]).names == (architecture.name(matrix),)
        assert len(find_matrices(model.module, [matrix]).names) == NUM_BLOCKS


def test_a_name_that_matches_nothing_is_refused_with_the_names_that_exist(
    model: LanguageModel, architecture: Architecture
) -> None:
    for pattern in ("mlp.dense_h_to_4h", "lm_head", "vision_tower.encoder.layers.0.self_attn.q_proj"):
        with pytest.raises(ValueError) as refused:
            find_matrices(model.module, [architecture.written, pattern])
        assert f"is named {pattern}; what can be edited" in str(refused.value)
        assert all(architecture.name(matrix, "*") in str(refused.value) for matrix in architecture.matrices)


def test_keys_and_gradients_are_those_of_the_whole_model(model: LanguageModel, architecture: Architecture) -> None:
    """Keys equal the inputs of a plain hook, and Σ g kᵀ over all tokens is the gradient of the loss for the weight."""
    names = [architecture.name(matrix) for matrix in architecture.matrices]
    text, seen = text_of(model), dict[str, Tensor]()
    weights = {n: model.module.get_submodule(n).weight.requires_grad_() for n in names}
    handles = [
        model.module.get_submodule(n).register_forward_pre_hook(lambda _m, args, n=n: seen.update({n: args[0].detach()}))
        for n in names
    ]
    loss = answer_nll(answer_log_probs(model.module, text), text).sum()
    for handle in handles:
        handle.remove()
    gradients = dict(zip(names, torch.autograd.grad(loss, list(weights.values())), strict=True))
    model.module.requires_grad_(False)
    answers, nll_T = capture(model.module, text, names)
    everywhere, _ = capture(model.module, text, names, all_tokens=True)
    assert float(nll_T.sum()) == pytest.approx(float(loss.detach()), rel=1e-5)
    for matrix in find_matrices(model.module, names).matrices:
        torch.testing.assert_close(answers[matrix.name].keys_TI, seen[matrix.name][text.predicts_BS])
        rows = everywhere[matrix.name]
        assert relative(rows.grads_TO.T @ rows.keys_TI, matrix.oriented(gradients[matrix.name])) < 1e-4


def test_fused_partners_share_their_input(model: LanguageModel, architecture: Architecture) -> None:
    """Check what key sharing relies on: the keys of a group are captured once, for all its matrices."""
    names = [architecture.name(matrix) for matrix in architecture.matrices]
    seen: dict[str, Tensor] = {}
    handles = [
        model.module.get_submodule(n).register_forward_pre_hook(lambda _m, args, n=n: seen.update({n: args[0]})) for n in names
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    for one in names:
        for other in set(fused_partners(one)) & set(names):
            torch.testing.assert_close(seen[one], seen[other])


def test_a_rank_one_update_adds_its_product_with_the_key(model: LanguageModel, architecture: Architecture) -> None:
    """`U Vᵀ` adds `(x · v) u` to the module's output, as a side branch and in the weight, and does not change the bias."""
    for matrix in architecture.matrices:
        module_name = architecture.name(matrix)
        delta = noise(model, [module_name], rank=1)
        part, module = delta.parts[module_name], model.module.get_submodule(module_name)
        assert isinstance(part, LowRank)
        x_SI = torch.randn(5, part.shape[1], generator=torch.Generator().manual_seed(2))
        expected_SO = module(x_SI) + (x_SI @ part.V_IR) * part.U_OR.T
        with applied(model.module, delta):
            torch.testing.assert_close(module(x_SI), expected_SO)
        EditedModel(model.module, find_matrices(model.module, [module_name])).add(delta)
        torch.testing.assert_close(module(x_SI), expected_SO)


def test_side_branch_edited_weights_and_export_are_the_same_model(
    name: str, architecture: Architecture, tmp_path: Path
) -> None:
    """Nothing else in the checkpoint changes: biases, norms, and the embedding, which may be tied to the output."""
    checkpoint = save_tiny(name, tmp_path / "base")
    model = load(checkpoint)
    names = [architecture.name(matrix) for matrix in architecture.matrices]
    before, delta = logits(model), noise(model, names)
    start = {key: tensor.clone() for key, tensor in model.module.state_dict().items()}
    with applied(model.module, delta):
        beside = logits(model)
    assert not torch.allclose(beside, before, atol=0.1)
    assert all(torch.equal(tensor, start[key]) for key, tensor in model.module.state_dict().items())
    edited = EditedModel(model.module, find_matrices(model.module, names))
    edited.add(delta)
    torch.testing.assert_close(logits(model), beside, rtol=IN_FP32, atol=IN_FP32)
    exported = load(export({"model": str(checkpoint), "matrices": names}, [delta], tmp_path / "exported"))
    assert torch.equal(logits(exported), logits(model))
    changed = {key for key, tensor in exported.module.state_dict().items() if not torch.equal(tensor, start[key])}
    assert changed == {f"{n}.weight" for n in names}
    output, embedding = exported.module.get_output_embeddings(), exported.module.get_input_embeddings()
    assert (output.weight is embedding.weight) == architecture.tied
    edited.set([])
    assert torch.equal(logits(model), before)


@cache
def moments_of(name: str) -> Moments:
    return measured(make_tiny(name), tuple(ARCHITECTURES[name].name(ARCHITECTURES[name].written, b) for b in (0, 1)))


def editors(architecture: Architecture) -> dict[str, Editor]:
    """Make an editor of each kind, still without training and without moments."""
    first, second = (architecture.name(architecture.written, block) for block in (0, 1))
    both, whole = (first, second), tuple(architecture.name(matrix) for matrix in architecture.matrices)
    return {
        "ROME": replace(SMALL_ROME, modules=(first,)),
        "MEMIT": replace(SMALL_MEMIT, modules=both),
        "AlphaEdit": replace(SMALL_ALPHAEDIT, modules=both),
        "RLEdit": RLEdit(whole, rank=8),
        "MALMEN": MALMEN(both, rank=8),
        "UltraEdit": UltraEdit(whole, step=1e-4),
        "LocFT": LocFT(whole, num_epochs=5, learning_rate=1e-3),
        "FT-L": FTL((second,), num_epochs=5, learning_rate=1e-3, epsilon=1e-3),
    }


@pytest.mark.parametrize("kind", editors(ARCHITECTURES["llama3"]))
def test_every_kind_of_editor_edits_it(name: str, model: LanguageModel, architecture: Architecture, kind: str) -> None:
    """One batch makes the answers more likely, and leaves the bits of the model's own weights."""
    editor: Any = editors(architecture)[kind]
    if kind in ("RLEdit", "MALMEN"):
        editor = learned(editor)(model)
    if kind in ("ROME", "MEMIT", "AlphaEdit"):
        editor = editor.with_moments(moments_of(name))
    start = {key: tensor.clone() for key, tensor in model.module.state_dict().items()}
    text = text_of(model)
    spec = find_matrices(model.module, editor.modules)
    before = answer_nll(logits(model), text).mean()
    delta, state = editor.edit(model, BATCH, editor.start(model, spec))
    assert set(delta.parts) == set(spec.names) and delta.is_finite and min(delta.norms().values()) > 0
    assert state.num_edits == len(BATCH)
    assert all(torch.equal(tensor, start[key]) for key, tensor in model.module.state_dict().items())
    with applied(model.module, delta):
        assert answer_nll(logits(model), text).mean() < before


@pytest.mark.parametrize("position", ["subject", "prompt"])
def test_losses_under_an_intervention_are_those_of_the_whole_model(
    name: str, architecture: Architecture, position: Any
) -> None:
    """Gemma is tested in fp32, because it computes its norms in fp32 for any dtype."""
    dtype, precision = (torch.float32, 1e-3) if name.startswith("gemma") else (torch.float64, 1e-5)
    check_losses(a_model(name, dtype), architecture.block(1), position, precision)


def test_memit_is_the_published_solve(name: str) -> None:
    check_memit(a_model(name), memory=1.0, bound=1e-4)


def test_the_soft_cap_of_gemma_2_on_its_attention_is_kept(tmp_path: Path) -> None:
    """The default attention of transformers has no soft cap, and vLLM's has one."""
    checkpoint = save_tiny("gemma2", tmp_path)
    model = load(checkpoint)
    assert model.module.config._attn_implementation == "eager"
    assert load(save_tiny("gemma3", tmp_path / "3")).module.config._attn_implementation == "sdpa"
    capped = logits(model)
    for block in model.module.model.layers:
        block.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(logits(model), capped, atol=1e-2)


def test_the_image_processor_is_exported_with_the_model(tmp_path: Path) -> None:
    base = save_tiny("gemma3-wrapped", tmp_path / "base")
    (base / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    exported = export({"model": str(base), "matrices": ["mlp.down_proj"]}, [], tmp_path / "exported")
    assert (exported / "preprocessor_config.json").read_text() == (base / "preprocessor_config.json").read_text()


def test_a_model_with_images_has_the_context_of_its_text_model() -> None:
    assert make_tiny("gemma3-wrapped").max_tokens == make_tiny("gemma3").max_tokens == 64
