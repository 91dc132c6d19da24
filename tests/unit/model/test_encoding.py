from __future__ import annotations

import pytest
import torch

from errata.delta.parts import Dense
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch, EditRejected
from errata.editors.editor import check_finite
from errata.model import capture as capturing
from errata.model.capture import capture
from errata.model.encoding import IGNORED, answer_log_probs, answer_nll, encode, padded, split
from errata.model.key_moments import gradient_sums, key_moment, key_sums
from errata.model.prefix_cache import PrefixCache, UnreadOutput
from errata.testbed.world import World
from tests.unit.small_models import a_model

MODULE = "model.layers.1.mlp.down_proj"
PROMPTS, TARGETS = ["question", "the old river"], ["answer", "bridge street xq"]


def test_labels_are_the_answer_and_its_end(tiny_model):
    tokenizer = tiny_model.tokenizer
    encoded = encode(tokenizer, PROMPTS, TARGETS)
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        labels = encoded.labels_BS[row]
        assert labels[labels != IGNORED].tolist() == [*tokenizer(target).input_ids, tokenizer.eos_token_id]
        length = int(encoded.attention_mask_BS[row].sum())
        ids = encoded.input_ids_BS[row, :length].tolist()
        assert ids == [*tokenizer(f"{prompt} {target}").input_ids, tokenizer.eos_token_id]
        assert (encoded.input_ids_BS[row, length:] == tokenizer.pad_token_id).all()
    assert encoded.predicts_BS.sum() == len(encoded.targets_T)
    assert tokenizer.eos_token_id not in encode(tokenizer, PROMPTS, TARGETS, eos=False).labels_BS


def test_answer_nll_is_the_loss_of_transformers(tiny_model):
    encoded = encode(tiny_model.tokenizer, PROMPTS, TARGETS)
    nll_T = answer_nll(answer_log_probs(tiny_model.module, encoded), encoded)
    output = tiny_model.module(encoded.input_ids_BS, attention_mask=encoded.attention_mask_BS, labels=encoded.labels_BS)
    assert float(nll_T.mean()) == pytest.approx(float(output.loss), rel=1e-5)


def test_captured_rows_make_the_gradient_of_the_weight(tiny_model):
    """d loss / d W = grads_TOᵀ keys_TI holds when every token that the loss reaches is an answer's, as in the last layer."""
    encoded = encode(tiny_model.tokenizer, PROMPTS, TARGETS)
    captured, nll_T = capture(tiny_model.module, encoded, [MODULE])
    weight = tiny_model.module.get_submodule(MODULE).weight
    weight.requires_grad_(True)
    loss = answer_nll(answer_log_probs(tiny_model.module, encoded), encoded).sum()
    (expected,) = torch.autograd.grad(loss, [weight])
    rows = captured[MODULE]
    torch.testing.assert_close(rows.grads_TO.T @ rows.keys_TI, expected)
    torch.testing.assert_close(nll_T.sum(), loss.detach())


def test_a_row_does_not_depend_on_the_batch(tiny_model):
    together, _ = capture(tiny_model.module, encode(tiny_model.tokenizer, PROMPTS, TARGETS), [MODULE])
    alone, _ = capture(tiny_model.module, encode(tiny_model.tokenizer, PROMPTS[:1], TARGETS[:1]), [MODULE])
    num_rows = len(alone[MODULE].keys_TI)
    torch.testing.assert_close(together[MODULE].keys_TI[:num_rows], alone[MODULE].keys_TI)
    torch.testing.assert_close(together[MODULE].grads_TO[:num_rows], alone[MODULE].grads_TO)


def test_key_moment_leaves_padding_out(tiny_model):
    batches = [encode(tiny_model.tokenizer, [prompt], [target]) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
    padded = encode(tiny_model.tokenizer, PROMPTS, TARGETS)
    one = key_moment(tiny_model.module, [padded], [MODULE])[MODULE]
    torch.testing.assert_close(one, key_moment(tiny_model.module, batches, [MODULE])[MODULE])
    torch.testing.assert_close(one, one.T)


def test_long_texts_are_measured_a_few_at_a_time(tiny_model, monkeypatch):
    text, widest = encode(tiny_model.tokenizer, PROMPTS * 3, TARGETS * 3), []
    whole, num_tokens = key_sums(tiny_model.module, [text], [MODULE], all_tokens=True)
    monkeypatch.setattr(capturing, "TOKENS_AT_ONCE", 2 * text.input_ids_BS.shape[1])
    handle = tiny_model.module.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widest.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    parts, counted = key_sums(tiny_model.module, [text], [MODULE], all_tokens=True)
    handle.remove()
    torch.testing.assert_close(parts, whole)
    assert counted == num_tokens and len(widest) == 3 and max(widest) <= 2 * text.input_ids_BS.shape[1]


def test_gradients_of_long_texts_are_summed_a_few_at_a_time(tiny_model, monkeypatch):
    text, widest = encode(tiny_model.tokenizer, PROMPTS * 3, TARGETS * 3), []
    modules = [MODULE.replace("layers.1", "layers.0"), MODULE]
    whole = gradient_sums(tiny_model.module, [text], modules)
    monkeypatch.setattr(capturing, "GRADIENT_TOKENS_AT_ONCE", 2 * text.input_ids_BS.shape[1])
    with tiny_model.module.register_forward_pre_hook(
        lambda _module, _args, kwargs: widest.append(kwargs["input_ids"].numel()), with_kwargs=True
    ):
        parts = gradient_sums(tiny_model.module, [text], modules)
    torch.testing.assert_close(parts, whole)
    assert len(widest) == 3 and max(widest) <= 2 * text.input_ids_BS.shape[1]


def test_what_comes_before_the_edited_matrices_runs_once(tiny_model, monkeypatch):
    encoded = encode(tiny_model.tokenizer, ["Vais Prais was born in"], ["Kurk"])
    name, calls = "model.layers.1.mlp.down_proj", []
    blocks = tiny_model.module.model.layers
    attention, up, forward = blocks[0].self_attn, blocks[1].mlp.up_proj, blocks[1].mlp.up_proj.forward
    handle = attention.register_forward_hook(lambda *_: calls.append("attention"))
    monkeypatch.setattr(up, "forward", own := lambda x: (calls.append("up"), forward(x))[1])
    delta = WeightDelta({name: Dense(0.1 * torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))})
    with applied(tiny_model.module, delta):
        expected, _ = capture(tiny_model.module, encoded, [name])
    calls.clear()
    cache = PrefixCache(tiny_model.module, [name])
    with cache.reusing(encoded):
        capture(tiny_model.module, encoded, [name])
    with cache.reusing(encoded), applied(tiny_model.module, delta):
        found, _ = capture(tiny_model.module, encoded, [name])
    handle.remove()
    assert calls == ["attention", "up"]
    assert torch.equal(found[name].grads_TO, expected[name].grads_TO)
    assert up.forward is own and "forward" not in vars(blocks[0])


def of_kind(kind):
    model = a_model(kind, torch.float32)
    edits = World(20).edits("test", 6)
    return model, encode(model.tokenizer, [edit.prompt for edit in edits], [edit.target for edit in edits])


@pytest.mark.parametrize("value, refused", [(3e38, False), (torch.inf, True), (torch.nan, True)])
def test_only_what_is_not_finite_is_refused_and_by_its_edit(tiny_model, value, refused):
    batch = EditBatch(tuple(Edit(prompt, target) for prompt, target in zip(PROMPTS, TARGETS, strict=True)))
    encoded = encode(tiny_model.tokenizer, PROMPTS, TARGETS)
    captured, nll_T = capture(tiny_model.module, encoded, [MODULE])
    captured[MODULE].grads_TO[-2:] = value  # two, so that the sum of the largest numbers is not finite either
    if not refused:
        check_finite(batch, encoded, captured, nll_T)
        return
    with pytest.raises(EditRejected, match="edit 1: the model's keys, gradients or loss are not finite here"):
        check_finite(batch, encoded, captured, nll_T)


@pytest.mark.parametrize("kind, name", [("llama", "model.layers.2.mlp.down_proj"), ("gpt2", "transformer.h.2.mlp.c_proj")])
def test_of_blocks_that_hand_on_to_the_next_the_last_is_kept(kind, name):
    model, text = of_kind(kind)
    cache = PrefixCache(model.module, [name])
    with cache.reusing(text):
        expected_TV = answer_log_probs(model.module, text)
    (outputs,) = (outputs for _, outputs in cache.outputs.values())
    unread = [output.shape for output in outputs if isinstance(output, UnreadOutput)]
    assert unread == [(*text.input_ids_BS.shape, 32)], "of three blocks the last is edited, and the second its input"
    with cache.reusing(text):
        assert torch.equal(answer_log_probs(model.module, text), expected_TV)


def test_a_text_is_split_by_rows_without_its_padding():
    whole = padded([([5, 6, 7], [8]), ([5], [6]), ([5, 6], [7]), ([9], [6, 7, 8])], 0)
    parts = split(whole, 2)
    assert [tuple(part.input_ids_BS.shape) for part in parts] == [(2, 4), (2, 4)]
    assert [tuple(part.input_ids_BS.shape) for part in split(whole, 3)] == [(3, 4), (1, 4)]
    assert [part.input_ids_BS.shape[1] for part in split(whole, 1)] == [4, 2, 3, 4]
    assert torch.equal(torch.cat([part.targets_T for part in parts]), whole.targets_T)
    assert split(whole, 0) == [whole] and split(whole, 4) == [whole]
