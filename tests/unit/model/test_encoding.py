"""Text to tensors: labels, losses at answer tokens, and splitting."""

from __future__ import annotations

import pytest
import torch

from errata.model.encoding import IGNORED, answer_log_probs, answer_nll, encode, padded, split
from errata.model.renderer import Renderer

PROMPTS, TARGETS = ["question", "the old river"], ["answer", "bridge street xq"]


def test_labels_are_the_answer_and_its_end(tiny_model):
    tokenizer = tiny_model.tokenizer
    encoded = encode(Renderer(tokenizer), PROMPTS, TARGETS)
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        labels = encoded.labels_BS[row]
        assert labels[labels != IGNORED].tolist() == [*tokenizer(target).input_ids, tokenizer.eos_token_id]
        length = int(encoded.attention_mask_BS[row].sum())
        ids = encoded.input_ids_BS[row, :length].tolist()
        assert ids == [*tokenizer(f"{prompt} {target}").input_ids, tokenizer.eos_token_id]
        assert (encoded.input_ids_BS[row, length:] == tokenizer.pad_token_id).all()
    assert encoded.predicts_BS.sum() == len(encoded.targets_T)
    assert tokenizer.eos_token_id not in encode(Renderer(tokenizer), PROMPTS, TARGETS, eos=False).labels_BS


def test_answer_nll_is_the_loss_of_transformers(tiny_model):
    encoded = encode(tiny_model.renderer, PROMPTS, TARGETS)
    nll_T = answer_nll(answer_log_probs(tiny_model.module, encoded), encoded)
    output = tiny_model.module(encoded.input_ids_BS, attention_mask=encoded.attention_mask_BS, labels=encoded.labels_BS)
    assert float(nll_T.mean()) == pytest.approx(float(output.loss), rel=1e-5)


def test_a_text_is_split_by_rows_without_columns_of_padding():
    whole = padded([([5, 6, 7], [8]), ([5], [6]), ([5, 6], [7]), ([9], [6, 7, 8])], 0)
    parts = split(whole, 2)
    assert [tuple(part.input_ids_BS.shape) for part in parts] == [(2, 4), (2, 4)]
    assert [tuple(part.input_ids_BS.shape) for part in split(whole, 3)] == [(3, 4), (1, 4)]
    assert [part.input_ids_BS.shape[1] for part in split(whole, 1)] == [4, 2, 3, 4]
    assert torch.equal(torch.cat([part.targets_T for part in parts]), whole.targets_T)
    assert split(whole, 0) == [whole] and split(whole, 4) == [whole]
