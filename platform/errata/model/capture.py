"""Keys and output gradients of linear modules at the answer tokens of a batch.

T answer tokens, I in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.model.encoding import Encoded, answer_log_probs, answer_nll, at_answers
from errata.model.matrices import input_sources
from errata.timing import timed


@dataclass(frozen=True)
class Captured:
    """Rows of one module where answer tokens are predicted: its inputs, and d(sum of -log p) / d(output)."""

    keys_TI: Tensor
    grads_TO: Tensor

    def with_gradient(self) -> Captured:
        """Keep the rows whose gradient is not zero."""
        chosen_T = (self.grads_TO != 0).any(1)
        return Captured(self.keys_TI[chosen_T], self.grads_TO[chosen_T])


@timed("capture")
def capture(
    model: Any, encoded: Encoded, modules: Sequence[str], all_tokens: bool = False
) -> tuple[dict[str, Captured], Tensor]:
    """Run a forward and a backward pass; return fp32 rows by module, and -log p of each answer token, [T].

    Rows are the positions that predict an answer token or, with `all_tokens`, all positions with a gradient. Modules with the
    same input share one tensor of keys, except with `all_tokens`. The loss is the *sum* over answer tokens, so that a row does
    not depend on the rest of the batch. Gradients are taken at the modules' outputs, not at the parameters. The results are on
    the device of the tokens.
    """
    sources = input_sources(modules)
    keys: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def rows_of(values_BSF: Tensor) -> Tensor:
        mask_BS = encoded.attention_mask_BS.bool().to(values_BSF.device)
        found = values_BSF[mask_BS] if all_tokens else at_answers(values_BSF, encoded)
        return found.float().to(encoded.input_ids_BS.device)

    def watch(name: str) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            source = sources[name]
            keys[name] = keys[source] if source in keys else rows_of(args[0].detach())
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[name]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in modules]
    try:
        with torch.enable_grad():
            nll_T = answer_nll(answer_log_probs(model, encoded), encoded)
            grads = torch.autograd.grad(nll_T.sum(), [outputs[name] for name in modules])
    finally:
        for handle in handles:
            handle.remove()
    captured = {name: Captured(keys[name], rows_of(grad)) for name, grad in zip(modules, grads, strict=True)}
    if all_tokens:
        captured = {name: found.with_gradient() for name, found in captured.items()}
    return captured, nll_T.detach().to(encoded.input_ids_BS.device)


def joined(parts: Sequence[Mapping[str, Captured]]) -> dict[str, Captured]:
    """Join the rows of a batch's parts. Modules that shared their keys still share them."""
    if len(parts) == 1:
        return dict(parts[0])
    keys: dict[int, Tensor] = {}
    for name, first in parts[0].items():
        if id(first.keys_TI) not in keys:
            keys[id(first.keys_TI)] = torch.cat([part[name].keys_TI for part in parts])
    return {
        name: Captured(keys[id(first.keys_TI)], torch.cat([part[name].grads_TO for part in parts]))
        for name, first in parts[0].items()
    }
