"""The hooks inside a vLLM worker that read a bank at each token, where vLLM computes its logits.

T tokens of a step, R requests in it, I in-features, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from vllm.forward_context import get_forward_context, is_forward_context_available

from errata.edit_memory.bank import Bank
from errata.edit_memory.datastore import mixed
from errata.edit_memory.lookup import fired, forced
from serving.engine.edit_memory.fired_notes import FiredNotes


class LogitsHook:
    """The hooks that compare the input of one module with a bank of states, and force tokens, from the next step on.

    vLLM computes logits for the last token of each request in a step. Their inputs of the module are kept while the step runs,
    and taken when its logits are computed; logits of prompts, which vLLM computes later, are the model's own. Engines must be
    eager: a compiled graph does not call hooks.
    """

    def __init__(self, model: nn.Module, site: nn.Module, bank: Bank, notes: FiredNotes | None = None) -> None:
        self.model, self.bank, self.notes = model, bank, notes
        self.ids_T: Tensor | None = None
        self.kept: tuple[Tensor, Tensor | None] | None = None
        self._compute_logits: Any = model.compute_logits
        self.handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            site.register_forward_pre_hook(self._keep),
        ]
        model.compute_logits = self._logits  # type: ignore[assignment]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        del self.model.compute_logits

    def _begin(self, _model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.ids_T, self.kept = kwargs.get("input_ids", args[0] if args else None), None

    def _keep(self, _site: nn.Module, args: tuple[Any, ...]) -> None:
        last_R = last_tokens()
        if last_R is not None:
            ids_R = None if self.ids_T is None else self.ids_T[last_R].clone()
            self.kept = args[0].detach()[last_R], ids_R

    def _logits(self, hidden: Tensor, *more: Any) -> Tensor | None:
        logits: Tensor | None = self._compute_logits(hidden, *more)
        kept, self.kept = self.kept, None
        if logits is None or kept is None or len(kept[0]) != len(logits):
            return logits
        rows = self.bank.on(logits.device)
        found = fired(rows, *kept)
        if self.notes is not None:
            self.notes.add(self.bank, found)
        return forced(rows, found.row_T, logits)


class MixingHook:
    """The hook that mixes the tokens of a datastore into the model's logits, from the next step on: those of prompts, too.

    The first logits of a step are those of the last token of each request; vLLM computes those of prompts later.
    """

    def __init__(self, model: nn.Module, bank: Bank, notes: FiredNotes | None = None) -> None:
        self.model, self.bank, self.notes = model, bank, notes
        self.are_first = False
        self.handle = model.register_forward_pre_hook(self._begin)
        self._compute_logits: Any = model.compute_logits
        model.compute_logits = self._logits  # type: ignore[assignment]

    def remove(self) -> None:
        self.handle.remove()
        del self.model.compute_logits

    def _begin(self, _model: nn.Module, _args: tuple[Any, ...]) -> None:
        self.are_first = last_tokens() is not None

    def _logits(self, hidden_RH: Tensor, *more: Any) -> Tensor | None:
        logits: Tensor | None = self._compute_logits(hidden_RH, *more)
        are_first, self.are_first = self.are_first, False
        if logits is None:
            return None
        found = mixed(self.bank.on(logits.device), hidden_RH, logits)
        if are_first and self.notes is not None:
            self.notes.add(self.bank, found.fired)
        return found.logits_TV


def last_tokens() -> Tensor | None:
    """Return where the last token of each request is in this step; None in a step without requests, such as a warm-up."""
    metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
    if not isinstance(metadata, dict) or not metadata:
        return None
    begins: Tensor | None = getattr(next(iter(metadata.values())), "query_start_loc", None)
    return None if begins is None else (begins[1:] - 1).long()
