"""Hooks that read a bank while a transformers model runs. A model whose bank is empty has none, and so its own bits.

B rows, S sequence, T rows of the output layer, I in-features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from errata.edit_memory.bank import EMBEDDED, READ_BEFORE, Bank, Kind
from errata.edit_memory.datastore import DatastoreHooks
from errata.edit_memory.experts import ExpertsHooks
from errata.edit_memory.lookup import fired, forced
from errata.edit_memory.reader import MemoryReader
from errata.edit_memory.rows import EmbeddingHooks
from errata.model.encoding import rows_at_head
from errata.model.language_model import renderer_of
from errata.model.prompt_hooks import Changed, PromptHook


class StateHooks:
    """The hooks that make a model read a bank of states: called before each pass, they keep the tokens of that pass."""

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


class RequestHook(PromptHook):
    """The hook that makes a model read a bank before its prompts: texts are put into them, or answers are said after them."""

    def __init__(self, model: Any, bank: Bank) -> None:
        self.bank = bank
        self.reader = MemoryReader(bank, renderer_of(model), int(model.config.get_text_config().max_position_embeddings))
        self.handle = model.register_forward_pre_hook(self)

    def remove(self) -> None:
        self.handle.remove()

    def __call__(self, model: Any, args: tuple[Any, ...]) -> None: ...

    def changed(self, rows: Sequence[list[int]], room: Sequence[int]) -> list[Changed]:
        changes = [self.reader.change(ids, more) for ids, more in zip(rows, room, strict=True)]
        return [
            Changed(ids) if one is None else Changed(one.prompt or ids, one.answer or ())
            for ids, one in zip(rows, changes, strict=True)
        ]


MemoryHooks = StateHooks | RequestHook | DatastoreHooks | EmbeddingHooks | ExpertsHooks
HOOKS: Mapping[Kind, type[MemoryHooks]] = {
    "state": StateHooks,
    **dict.fromkeys(READ_BEFORE, RequestHook),
    "datastore": DatastoreHooks,
    **dict.fromkeys(EMBEDDED, EmbeddingHooks),
    "experts": ExpertsHooks,
}


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
        HOOKS[bank.kind](model, bank)


@contextmanager
def reading(model: nn.Module, bank: Bank) -> Iterator[None]:
    """Make a model read a bank instead of its own inside the block."""
    before = bank_of(model)
    read_bank(model, bank)
    try:
        yield
    finally:
        read_bank(model, before)
