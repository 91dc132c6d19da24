from __future__ import annotations

import pytest
import torch

from errata.capture import Trunk, capture, key_moment
from errata.delta import Dense, WeightDelta, applied
from errata.encode import IGNORED, answer_log_probs, answer_nll, encode

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
    trunk = Trunk(tiny_model.module, [name])
    with trunk.once(encoded):
        capture(tiny_model.module, encoded, [name])
    with trunk.once(encoded), applied(tiny_model.module, delta):
        found, _ = capture(tiny_model.module, encoded, [name])
    handle.remove()
    assert calls == ["attention", "up"]
    assert torch.equal(found[name].grads_TO, expected[name].grads_TO)
    assert up.forward is own and "forward" not in vars(blocks[0])
