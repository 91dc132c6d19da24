"""The fine-tuning editors against a plain training loop, on the weight or on the factors of its change."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch, EditRejected
from errata.editors import EditorState
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.fine_tuning.locft import LocFT
from errata.editors.fine_tuning.lora import LoRA
from errata.model.encoding import answer_log_probs, answer_nll, encode
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World

MODULE = "layers.1.mlp.down_proj"
BATCH = EditBatch(tuple(World(20).edits("test", 4)))


def loss_of(model: LanguageModel, batch: EditBatch, eos: bool = True) -> torch.Tensor:
    encoded = encode(model.renderer, batch.prompts, batch.targets, eos=eos)
    return answer_nll(answer_log_probs(model.module, encoded), encoded).mean()


def test_locft_is_adam_on_the_weight(tiny_model: LanguageModel) -> None:
    editor = LocFT((MODULE,), num_epochs=5, learning_rate=1e-2, loss_floor=0.0)
    delta, _ = editor.edit(tiny_model, BATCH, EditorState())
    module = copy.deepcopy(tiny_model.module)
    weight = module.get_submodule(f"model.{MODULE}").weight.requires_grad_()
    start_OI = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(replace(tiny_model, module=module), BATCH).backward()
        optimizer.step()
    torch.testing.assert_close(delta.parts[f"model.{MODULE}"].dense(), weight.detach() - start_OI, rtol=1e-3, atol=1e-4)


def test_the_end_of_the_answer_is_learned_too(tiny_model: LanguageModel) -> None:
    with_end, without = (
        LocFT((MODULE,), num_epochs=2, eos=eos).edit(tiny_model, BATCH, EditorState())[0].digest() for eos in (True, False)
    )
    assert with_end != without


def test_descent_ends_at_the_loss_floor(tiny_model: LanguageModel) -> None:
    delta, state = LocFT((MODULE,), loss_floor=1e6).edit(tiny_model, BATCH, EditorState())
    assert delta.norms() == {f"model.{MODULE}": 0.0} and state.num_edits == 4


def test_ftl_stays_in_its_box_and_fills_it(tiny_model: LanguageModel) -> None:
    editor = FTL((MODULE,), num_epochs=4, learning_rate=1e-3, epsilon=1e-3)
    delta, _ = editor.edit(tiny_model, BATCH, EditorState())
    change_OI = delta.parts[f"model.{MODULE}"].dense()
    assert float(change_OI.abs().max()) <= 1e-3 + 1e-9
    assert float((change_OI.abs() > 0.99e-3).float().mean()) > 0.9
    assert torch.linalg.matrix_rank(change_OI) == min(change_OI.shape)


def test_a_transposed_weight_is_edited_the_same_way(tiny_model: LanguageModel) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tiny_model.tokenizer), n_positions=48, n_embd=32, n_layer=2, n_head=2)
    gpt2 = replace(tiny_model, module=GPT2LMHeadModel(config).eval().requires_grad_(False))
    editor = LocFT(("h.1.mlp.c_proj",), num_epochs=10, learning_rate=1e-2)
    spec = find_matrices(gpt2.module, editor.modules)
    assert spec.matrices[0].transposed
    before = float(loss_of(gpt2, BATCH))
    delta, _ = editor.edit(gpt2, BATCH, editor.start(gpt2, spec))
    EditedModel(gpt2.module, spec).add(delta)
    assert float(loss_of(gpt2, BATCH)) < before


def test_a_learning_rate_that_diverges_is_refused(tiny_model: LanguageModel) -> None:
    with pytest.raises(EditRejected, match="finite"):
        LocFT((MODULE,), learning_rate=float("inf"), num_epochs=2).edit(tiny_model, BATCH, EditorState())


def test_a_batch_that_is_too_large_is_refused(tiny_model: LanguageModel) -> None:
    with pytest.raises(EditRejected, match="1 to 3 edits"):
        FTL((MODULE,), max_batch=3).edit(tiny_model, BATCH, EditorState())


def test_lora_is_adam_on_the_factors_of_the_change(tiny_model: LanguageModel) -> None:
    """The last change is from a loss that falls, so B is not zero, and the rank is that of the adapter."""
    editor = LoRA((MODULE,), rank=2, alpha=6.0, num_epochs=5, learning_rate=1e-2, loss_floor=0.0)
    delta, state = editor.edit(tiny_model, BATCH, EditorState())
    (part,) = delta.parts.values()
    assert isinstance(part, LowRank) and part.rank == 2 and state.num_edits == 4
    start, _ = replace(editor, num_epochs=0).edit(tiny_model, BATCH, EditorState())
    (first,) = start.parts.values()
    assert isinstance(first, LowRank) and not first.U_OR.any()
    A_RI, B_OR = first.V_IR.T.clone().requires_grad_(), first.U_OR.clone().requires_grad_()
    optimizer = torch.optim.Adam([A_RI, B_OR], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        branch = WeightDelta({f"model.{MODULE}": LowRank(3.0 * B_OR, A_RI.T)})
        with applied(tiny_model.module, branch):
            loss_of(tiny_model, BATCH).backward()
        optimizer.step()
    torch.testing.assert_close(part.dense(), (3.0 * B_OR @ A_RI).detach(), rtol=1e-3, atol=1e-4)


def test_lora_leaves_nothing_of_its_adapter_behind(tiny_model: LanguageModel) -> None:
    before = [(name, type(module), id(module)) for name, module in tiny_model.module.named_modules()]
    with pytest.raises(EditRejected, match="finite"):
        LoRA((MODULE,), learning_rate=float("inf"), num_epochs=2).edit(tiny_model, BATCH, EditorState())
    assert [(name, type(module), id(module)) for name, module in tiny_model.module.named_modules()] == before
    assert not hasattr(tiny_model.module, "peft_config")
    assert not any(parameter.requires_grad for parameter in tiny_model.module.parameters())


def test_lora_edits_on_top_of_a_side_branch(tiny_model: LanguageModel) -> None:
    editor = LoRA((MODULE,), num_epochs=3, learning_rate=1e-2)
    first, _ = editor.edit(tiny_model, BATCH, EditorState())
    with applied(tiny_model.module, first):
        again, _ = editor.edit(tiny_model, BATCH, EditorState())
        before = float(loss_of(tiny_model, BATCH))
        with applied(tiny_model.module, again):
            assert float(loss_of(tiny_model, BATCH)) < before
    assert again.digest() != first.digest()


@pytest.mark.parametrize("fields", [{"rank": 0}, {"alpha": 0.0}])
def test_lora_refuses_an_adapter_that_cannot_write(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        LoRA((MODULE,), **fields)  # type: ignore[arg-type]
