"""Second moments of a linear layer's keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.model.capture import capture
from errata.model.encoding import Encoded, split

TOKENS_AT_ONCE = 16384  # of texts that may be as long as the model's context
GRADIENT_TOKENS_AT_ONCE = 2048  # with a backward pass: every block keeps its values, and each token has logits


def _parts(encoded_batches: Iterable[Encoded], num_tokens: int) -> Iterator[Encoded]:
    """The same texts, at most so many tokens at a time, or one text."""
    for whole in encoded_batches:
        yield from split(whole, max(1, num_tokens // whole.input_ids_BS.shape[1]))


@torch.no_grad()
def key_sums(
    model: Any, encoded_batches: Iterable[Encoded], modules: Sequence[str], all_tokens: bool = False
) -> tuple[dict[str, Tensor], int]:
    """`Σ k kᵀ` of each module's input, [I, I] fp32, and over how many tokens: the positions where an answer token is predicted
    or, with `all_tokens`, every one that is no padding. The sums are where the model's tokens go in."""
    sums: dict[str, Tensor] = {}
    num_tokens = 0

    def watch(name: str, mask_BS: Tensor) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            keys_TI = args[0][mask_BS.to(args[0].device)].float()
            sums[name] = sums.get(name, 0) + keys_TI.T @ keys_TI

        return hook

    for encoded in _parts(encoded_batches, TOKENS_AT_ONCE):
        mask_BS = encoded.attention_mask_BS.bool() if all_tokens else encoded.predicts_BS
        handles = [model.get_submodule(n).register_forward_pre_hook(watch(n, mask_BS)) for n in modules]
        try:
            # Without the output embedding: logits of whole texts would be the largest tensor of all.
            model.base_model(input_ids=encoded.input_ids_BS, attention_mask=encoded.attention_mask_BS, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        num_tokens += int(mask_BS.sum())
    first = next(iter(model.parameters())).device
    return {name: total.to(first) for name, total in sums.items()}, num_tokens


def gradient_sums(model: Any, encoded_batches: Iterable[Encoded], modules: Sequence[str]) -> dict[str, Tensor]:
    """The gradient of the sum of -log p over all answer tokens by each matrix, `Σ g kᵀ`, [O, I] fp32."""
    sums: dict[str, Tensor] = {}
    for encoded in _parts(encoded_batches, GRADIENT_TOKENS_AT_ONCE):
        captured, _ = capture(model, encoded, modules, all_tokens=True)
        for name, rows in captured.items():
            sums[name] = sums.get(name, 0) + rows.grads_TO.T @ rows.keys_TI
    return sums


def key_moment(model: Any, encoded_batches: Iterable[Encoded], modules: Sequence[str]) -> dict[str, Tensor]:
    """Uncentred second moment `E[k kᵀ]` of each module's input where an answer token is predicted, [I, I] fp32.

    Where a text is a question with its answer, only there can an edit change what the model says; of plain text, encoded
    with its first word as the prompt, that is every token. Raises `ValueError` if there is none.
    """
    sums, num_tokens = key_sums(model, encoded_batches, modules)
    if not num_tokens:
        raise ValueError("no text to measure the keys on: give lines of at least two words, or set metric_strength to 0")
    return {name: total / num_tokens for name, total in sums.items()}
