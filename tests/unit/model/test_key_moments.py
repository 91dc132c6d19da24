"""Second moments of keys, and sums over long texts."""

from __future__ import annotations

import torch

from errata.model import key_moments
from errata.model.encoding import encode
from errata.model.key_moments import gradient_sums, key_moment, key_sums

MODULE = "model.layers.1.mlp.down_proj"
PROMPTS, TARGETS = ["question", "the old river"], ["answer", "bridge street xq"]


def test_key_moment_leaves_padding_out(tiny_model):
    batches = [encode(tiny_model.renderer, [prompt], [target]) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
    padded = encode(tiny_model.renderer, PROMPTS, TARGETS)
    one = key_moment(tiny_model.module, [padded], [MODULE])[MODULE]
    torch.testing.assert_close(one, key_moment(tiny_model.module, batches, [MODULE])[MODULE])
    torch.testing.assert_close(one, one.T)


def test_long_texts_are_measured_in_parts(tiny_model, monkeypatch):
    text, widest = encode(tiny_model.renderer, PROMPTS * 3, TARGETS * 3), []
    whole, num_tokens = key_sums(tiny_model.module, [text], [MODULE], all_tokens=True)
    monkeypatch.setattr(key_moments, "MAX_TOKENS", 2 * text.input_ids_BS.shape[1])
    handle = tiny_model.module.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widest.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    parts, counted = key_sums(tiny_model.module, [text], [MODULE], all_tokens=True)
    handle.remove()
    torch.testing.assert_close(parts, whole)
    assert counted == num_tokens and len(widest) == 3 and max(widest) <= 2 * text.input_ids_BS.shape[1]


def test_gradients_of_long_texts_are_summed_in_parts(tiny_model, monkeypatch):
    text, widest = encode(tiny_model.renderer, PROMPTS * 3, TARGETS * 3), []
    modules = [MODULE.replace("layers.1", "layers.0"), MODULE]
    whole = gradient_sums(tiny_model.module, [text], modules)
    monkeypatch.setattr(key_moments, "MAX_GRADIENT_TOKENS", 2 * text.input_ids_BS.shape[1])
    with tiny_model.module.register_forward_pre_hook(
        lambda _module, _args, kwargs: widest.append(kwargs["input_ids"].numel()), with_kwargs=True
    ):
        parts = gradient_sums(tiny_model.module, [text], modules)
    torch.testing.assert_close(parts, whole)
    assert len(widest) == 3 and max(widest) <= 2 * text.input_ids_BS.shape[1]
