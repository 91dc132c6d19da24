"""Second moments of a linear layer's keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.model.capture import capture
from errata.model.encoding import Encoded, split

MAX_TOKENS = 16384  # In one pass; texts may be as long as the model's context.
MAX_GRADIENT_TOKENS = 2048  # In one pass with gradients, which keeps activations of every block and logits of each token.


def _parts(encoded_batches: Iterable[Encoded], num_tokens: int) -> Iterator[Encoded]:
    """Split the texts into batches of at most `num_tokens` tokens, or of one text."""
    for whole in encoded_batches:
        yield from split(whole, max(1, num_tokens // whole.input_ids_BS.shape[1]))


@torch.no_grad()
def key_sums(
    model: Any, encoded_batches: Iterable[Encoded], modules: Sequence[str], all_tokens: bool = False
) -> tuple[dict[str, Tensor], int]:
    """Compute `Σ k kᵀ` of each module's input, [I, I] fp32, and the number of tokens in the sum.

    Tokens are the positions that predict an answer token or, with `all_tokens`, all except padding. The sums are on the device
    of the model's tokens.
    """
    sums: dict[str, Tensor] = {}
    num_tokens = 0

    def watch(name: str, mask_BS: Tensor) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            keys_TI = args[0][mask_BS.to(args[0].device)].float()
            sums[name] = sums.get(name, 0) + keys_TI.T @ keys_TI

        return hook

    for encoded in _parts(encoded_batches, MAX_TOKENS):
        mask_BS = encoded.attention_mask_BS.bool() if all_tokens else encoded.predicts_BS
        handles = [model.get_submodule(n).register_forward_pre_hook(watch(n, mask_BS)) for n in modules]
        try:
            # The output embedding is left out, because the logits of whole texts would be the largest tensor.
            model.base_model(**encoded.arguments(model.dtype), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        num_tokens += int(mask_BS.sum())
    first = next(iter(model.parameters())).device
    return {name: total.to(first) for name, total in sums.items()}, num_tokens


def gradient_sums(model: Any, encoded_batches: Iterable[Encoded], modules: Sequence[str]) -> dict[str, Tensor]:
    """Compute the gradient of the sum of -log p over all answer tokens for each matrix, `Σ g kᵀ`, [O, I] fp32."""
    sums: dict[str, Tensor] = {}
    for encoded in _parts(encoded_batches, MAX_GRADIENT_TOKENS):
        captured, _ = capture(model, encoded, modules, all_tokens=True)
        for name, rows in captured.items():
            sums[name] = sums.get(name, 0) + rows.grads_TO.T @ rows.keys_TI
    return sums


def key_moment(model: Any, encoded_batches: Iterable[Encoded], modules: Sequence[str]) -> dict[str, Tensor]:
    """Compute the uncentred second moment `E[k kᵀ]` of each module's input where an answer token is predicted, [I, I] fp32.

    In a question with its answer, an edit changes the model's answer only at these positions. In plain text, encoded with its
    first word as the prompt, they are all positions. Raises `ValueError` if there are none.
    """
    sums, num_tokens = key_sums(model, encoded_batches, modules)
    if not num_tokens:
        raise ValueError("no text to measure the keys on: give lines of at least two words, or set metric_strength to 0")
    return {name: total / num_tokens for name, total in sums.items()}
