"""Keys and output gradients at answer tokens."""

from __future__ import annotations

import torch

from errata.model.capture import capture
from errata.model.encoding import answer_log_probs, answer_nll, encode

MODULE = "model.layers.1.mlp.down_proj"
PROMPTS, TARGETS = ["question", "the old river"], ["answer", "bridge street xq"]


def test_the_captured_rows_give_the_gradient_of_the_weight(tiny_model):
    """The gradient of the last layer, where only answer positions have one, is d loss / d W = grads_TOᵀ keys_TI."""
    encoded = encode(tiny_model.renderer, PROMPTS, TARGETS)
    captured, nll_T = capture(tiny_model.module, encoded, [MODULE])
    weight = tiny_model.module.get_submodule(MODULE).weight
    weight.requires_grad_(True)
    loss = answer_nll(answer_log_probs(tiny_model.module, encoded), encoded).sum()
    (expected,) = torch.autograd.grad(loss, [weight])
    rows = captured[MODULE]
    torch.testing.assert_close(rows.grads_TO.T @ rows.keys_TI, expected)
    torch.testing.assert_close(nll_T.sum(), loss.detach())


def test_a_row_does_not_depend_on_the_batch(tiny_model):
    together, _ = capture(tiny_model.module, encode(tiny_model.renderer, PROMPTS, TARGETS), [MODULE])
    alone, _ = capture(tiny_model.module, encode(tiny_model.renderer, PROMPTS[:1], TARGETS[:1]), [MODULE])
    num_rows = len(alone[MODULE].keys_TI)
    torch.testing.assert_close(together[MODULE].keys_TI[:num_rows], alone[MODULE].keys_TI)
    torch.testing.assert_close(together[MODULE].grads_TO[:num_rows], alone[MODULE].grads_TO)
