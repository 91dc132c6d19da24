"""Keys and output gradients at chosen linear modules, for the answer tokens of a batch.

T answer tokens, I in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.clock import stage
from errata.encode import Encoded, answer_log_probs, answer_nll
from errata.model import input_sources


@dataclass(frozen=True)
class Captured:
    """`keys_TI`: inputs of the module where an answer token is predicted; `grads_TO`: d(sum of -log p) / d(output) there."""

    keys_TI: Tensor
    grads_TO: Tensor

    def with_gradient(self) -> Captured:
        """The rows whose gradient is not zero."""
        chosen_T = (self.grads_TO != 0).any(1)
        return Captured(self.keys_TI[chosen_T], self.grads_TO[chosen_T])


@stage("capture")
def capture(
    model: Any, encoded: Encoded, modules: Sequence[str], all_tokens: bool = False
) -> tuple[dict[str, Captured], Tensor]:
    """One forward and one backward pass: the captured rows by module, in fp32, and the -log p of each answer token, [T].

    Rows are the positions that predict an answer token or, with `all_tokens`, all that the answers have a gradient at.
    Modules with the same input share one tensor of keys, unless rows are left out. The loss is the *sum* over answer tokens,
    so that a row does not depend on what else is in the batch. Parameters stay without gradients: a zero that takes one is
    added to each module's output instead.
    """
    rows = encoded.attention_mask_BS.bool() if all_tokens else encoded.predicts_BS
    sources = input_sources(modules)
    keys: dict[str, Tensor] = {}
    zeros: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            source = sources[name]
            keys[name] = keys[source] if source in keys else args[0].detach()[rows].float()
            zeros[name] = torch.zeros_like(output, requires_grad=True)
            return output + zeros[name]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in modules]
    try:
        with torch.enable_grad():
            nll_T = answer_nll(answer_log_probs(model, encoded), encoded)
            grads = torch.autograd.grad(nll_T.sum(), [zeros[name] for name in modules])
    finally:
        for handle in handles:
            handle.remove()
    captured = {name: Captured(keys[name], grad[rows].float()) for name, grad in zip(modules, grads, strict=True)}
    if all_tokens:
        captured = {name: found.with_gradient() for name, found in captured.items()}
    return captured, nll_T.detach()


@contextmanager
def unchanged_before(model: nn.Module, modules: Sequence[str]) -> Iterator[None]:
    """Within it, passes over one and the same input run the blocks before the first of `modules` only once.

    For passes between which only `modules` change: what comes before them gives the same again. Where the model has no list
    of blocks, nothing is left out.
    """
    blocks = _blocks_before(model, modules)
    outputs: dict[int, Any] = {}

    def once(index: int, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if index not in outputs:
                outputs[index] = forward(*args, **kwargs)
            return outputs[index]

        return run

    for index, block in enumerate(blocks):
        block.forward = once(index, block.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _blocks_before(model: nn.Module, modules: Sequence[str]) -> list[nn.Module]:
    lists = {name: child for name, child in model.named_modules() if isinstance(child, nn.ModuleList)}
    for name, blocks in lists.items():
        inside = [module.removeprefix(f"{name}.").split(".")[0] for module in modules if module.startswith(f"{name}.")]
        if len(inside) == len(modules):
            return list(blocks)[: min(int(index) for index in inside)]
    return []


def key_moment(model: Any, encoded_batches: Sequence[Encoded], modules: Sequence[str]) -> dict[str, Tensor]:
    """Uncentred second moment `E[k kᵀ]` of each module's input where an answer token is predicted, [I, I] fp32.

    Where a text is a question with its answer, only there can an edit change what the model says; of plain text, encoded
    with its first word as the prompt, that is every token.
    """
    sums: dict[str, Tensor] = {}
    num_tokens = 0

    def watch(name: str, mask_BS: Tensor) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            keys_TI = args[0][mask_BS].float()
            sums[name] = sums.get(name, 0) + keys_TI.T @ keys_TI

        return hook

    for encoded in encoded_batches:
        mask_BS = encoded.predicts_BS
        handles = [model.get_submodule(n).register_forward_pre_hook(watch(n, mask_BS)) for n in modules]
        try:
            with torch.no_grad():
                model(input_ids=encoded.input_ids_BS, attention_mask=encoded.attention_mask_BS, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        num_tokens += int(mask_BS.sum())
    return {name: total / num_tokens for name, total in sums.items()}
