"""Hooks that read a bank while a transformers model runs. A model whose bank is empty has none, and so its own bits.

B rows, S sequence, T rows of the output layer, I in-features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from errata.edit_memory.bank import Bank
from errata.edit_memory.lookup import fired, forced
from errata.model.encoding import rows_at_head


class MemoryHooks:
    """The hooks that make a model read a bank: it is called before each pass, and keeps the tokens of that pass."""

    def __init__(self, model: Any, bank: Bank) -> None:
        self.model, self.bank = model, bank
        self.ids_BS: Tensor | None = None
        self.input_BSI: Tensor | None = None
        self.handles = [
            model.register_forward_pre_hook(self, with_kwargs=True),
            model.get_submodule(bank.site).register_forward_pre_hook(self._keep_input),
            model.get_output_embeddings().register_forward_hook(self._force),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __call__(self, _model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.ids_BS, self.input_BSI = kwargs.get("input_ids", args[0] if args else None), None

    def _keep_input(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.input_BSI = args[0].detach()

    def _force(self, head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        """Force the tokens of the rows that fire among those that the output layer computes."""
        if self.input_BSI is None:  # The output layer is called by itself.
            return logits
        input_TI = rows_at_head(head, self.input_BSI, args[0]).to(logits.device)
        ids_T = None if self.ids_BS is None else rows_at_head(head, self.ids_BS[..., None], args[0])[:, 0].to(logits.device)
        rows = self.bank.on(logits.device)
        found = fired(rows, input_TI, ids_T)
        return forced(rows, found.row_T, logits.flatten(0, -2)).view_as(logits)


def installed(model: nn.Module) -> MemoryHooks | None:
    """Return the hooks of the bank that a model reads; None if it reads none."""
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, MemoryHooks)), None)


def bank_of(model: nn.Module) -> Bank | None:
    """Return the bank that a model reads; None if it reads none."""
    hooks = installed(model)
    return None if hooks is None else hooks.bank


def read_bank(model: nn.Module, bank: Bank | None) -> None:
    """Make a model read a bank instead of the one that it reads; an empty one, or None, makes it read none."""
    hooks = installed(model)
    if hooks is not None:
        hooks.remove()
    if bank is not None and len(bank):
        MemoryHooks(model, bank)


@contextmanager
def reading(model: nn.Module, bank: Bank) -> Iterator[None]:
    """Make a model read a bank instead of its own inside the block."""
    before = bank_of(model)
    read_bank(model, bank)
    try:
        yield
    finally:
        read_bank(model, before)
