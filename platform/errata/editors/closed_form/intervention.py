"""Intervention on a module's output at the edit positions, with the losses that a search for targets descends on.

Tokens before the edit position do not change (attention is causal), nor do the layers before the module. Attention keys and
values of the former and outputs of the latter are cached in the first pass, so that a step runs the remaining layers over the
remaining tokens. With a context before each prompt, these are a few tokens of each.
n edits, m anchors, B rows, S sequence, P tokens before the edit position, T answer tokens, D features of the output,
V vocabulary, H heads, F features of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from errata.edit import Edit, EditBatch
from errata.editors.closed_form.contexts import Contexts, EditPrompts, tokenise_at_subject
from errata.model.encoding import IGNORED, Encoded, answer_log_probs, answer_nll
from errata.model.language_model import LanguageModel
from errata.model.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from transformers import DynamicCache


class Intervention:
    """A batch with a changeable module output at its edit positions.

    The rows are the edits in their contexts, then the anchors, "{subject} is a", whose next word must not change. The first
    token of an anchor's answer marks where that word is predicted. `before_nD` is the module's output in the bare prompts, in
    fp32 at least. Raises `EditRejected` as `tokenise_at_subject` does.
    """

    def __init__(self, model: LanguageModel, batch: EditBatch, site: str, contexts: Contexts, eos: bool) -> None:
        in_context = tokenise_at_subject(model, batch, contexts, eos)
        with_anchor = [index for index, edit in enumerate(batch) if contexts.writes_at_subject(edit)]
        anchors = [_anchor(batch.edits[index]) for index in with_anchor]
        rows = _stacked(in_context, _first_token_only(_anchored(model, anchors, with_anchor))) if anchors else in_context
        self.model, self.module, self.num_edits = model, model.module.get_submodule(site), len(batch)
        self.owner_B, self.owner_m = rows.edit_B, torch.tensor(with_anchor, device=model.device, dtype=torch.long)
        tokens_B = rows.encoded.predicts_BS.sum(1)
        row_T = torch.repeat_interleave(torch.arange(len(tokens_B), device=model.device), tokens_B)
        self.is_answer_T = row_T < len(in_context.edit_B)
        answer_T = row_T[self.is_answer_T]
        self.edit_T = rows.edit_B[answer_T]
        rows_n = torch.bincount(in_context.edit_B, minlength=len(batch))
        # The rows of an edit, and the answer tokens of one, have equal weights.
        self.share_T = 1.0 / (tokens_B[answer_T] * rows_n[self.edit_T])
        self.prefix = _Prefix(rows)
        with torch.no_grad():
            output_BD, log_probs_TV = self._first_pass(rows)
        self.before_nD = output_BD[in_context.first_n]
        self.anchor_mV = self._at_anchors(log_probs_TV)
        self.cache = PrefixCache(model.module, [site])

    def losses(self, change_nD: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each edit, the mean -log p of its answer and its anchor's KL, with `change_nD` added to the output."""

        def add(_module: Any, _args: Any, output: Any) -> Any:
            tensor = _tensor(output)
            change_BD = change_nD[self.owner_B].to(tensor)
            added = torch.cat([tensor[:, :1] + change_BD[:, None], tensor[:, 1:]], 1)  # The rest begins at the position.
            return (added, *output[1:]) if isinstance(output, tuple) else added

        with _hooked(self.module, add), self.cache.reusing(self.prefix.rest):
            log_probs_TV = answer_log_probs(self.model.module, self.prefix.rest, **self.prefix.arguments())
        nll_T = answer_nll(log_probs_TV, self.prefix.rest).to(self.share_T.device)[self.is_answer_T]
        nothing_n = change_nD.new_zeros(self.num_edits)
        nll_n = nothing_n.index_add(0, self.edit_T, (self.share_T * nll_T).to(nothing_n))
        kl_m = (self.anchor_mV.exp() * (self.anchor_mV - self._at_anchors(log_probs_TV))).sum(1)
        return nll_n, nothing_n.index_add(0, self.owner_m, kl_m.to(nothing_n))

    def _at_anchors(self, log_probs_TV: Tensor) -> Tensor:
        return log_probs_TV[~self.is_answer_T.to(log_probs_TV.device)]

    def _first_pass(self, rows: EditPrompts) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []

        def watch(_module: Any, _args: Any, output: Any) -> None:
            found.append(rows.at_edit_position(_tensor(output)))

        cache = _empty_cache()
        with _hooked(self.module, watch):
            log_probs_TV = answer_log_probs(self.model.module, rows.encoded, past_key_values=cache, use_cache=True)
        self.prefix.keep(cache)
        return found[0], log_probs_TV


class _Prefix:
    """The tokens before the edit positions: their attention keys and values, and the rows without them (`rest`).

    A shorter prefix is padded on the left, because sliding-window attention counts distances between tokens in the cache.
    """

    def __init__(self, rows: EditPrompts) -> None:
        encoded, position_B = rows.encoded, rows.position_B
        device, width = position_B.device, encoded.input_ids_BS.shape[1]
        self.num_before = int(position_B.max())
        index_BS = position_B[:, None] + torch.arange(width - int(position_B.min()), device=device)
        inside_BS = index_BS < width

        def after(tensor_BS: Tensor, fill: int) -> Tensor:
            return tensor_BS.gather(1, index_BS.clamp(max=width - 1)).masked_fill(~inside_BS, fill)

        mask_BS = after(encoded.attention_mask_BS, 0)
        length = int(mask_BS.sum(1).max())
        self.index_BP = torch.arange(self.num_before, device=device) - self.num_before + position_B[:, None]
        labels_BS = after(encoded.labels_BS, IGNORED)[:, :length]
        self.rest = Encoded(after(encoded.input_ids_BS, 0)[:, :length], mask_BS[:, :length], labels_BS)
        self.mask_BS = torch.cat([(self.index_BP >= 0).to(mask_BS), mask_BS[:, :length]], 1)
        self.position_BS = index_BS[:, :length].clamp(max=width - 1)
        self.layers: list[tuple[Tensor, ...]] = []

    def keep(self, cache: DynamicCache) -> None:
        found: list[Any] = list(cache.layers)
        self.layers = [tuple(self._before(t) for t in (layer.keys, layer.values)) for layer in found]

    def _before(self, kept_BHSF: Tensor) -> Tensor:
        index_B1P1 = self.index_BP.to(kept_BHSF.device).clamp(min=0)[:, None, :, None]
        return kept_BHSF.gather(2, index_B1P1.expand(-1, kept_BHSF.shape[1], -1, kept_BHSF.shape[3]))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a pass over `rest`. The attention cache is new each time, because a pass adds to it."""
        cache = _empty_cache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
        past = {"past_key_values": cache} if self.num_before else {}
        return {"attention_mask": self.mask_BS, "position_ids": self.position_BS, **past}


def _empty_cache() -> DynamicCache:
    from transformers import DynamicCache  # Not at import time: it takes a second, and a check of settings needs none.

    return DynamicCache()


@contextmanager
def _hooked(module: torch.nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _tensor(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _anchor(edit: Edit) -> Edit:
    return Edit(f"{edit.subject} is a", ".", edit.subject)


def _anchored(model: LanguageModel, anchors: Sequence[Edit], owners: Sequence[int]) -> EditPrompts:
    in_context = tokenise_at_subject(model, EditBatch(tuple(anchors)), Contexts(), eos=False)
    return replace(in_context, edit_B=torch.tensor(owners, device=model.device))


def _first_token_only(in_context: EditPrompts) -> EditPrompts:
    labels_BS = in_context.encoded.labels_BS
    marked_BS = labels_BS != IGNORED
    first_BS = marked_BS & (marked_BS.cumsum(1) == 1)
    return replace(in_context, encoded=replace(in_context.encoded, labels_BS=labels_BS.masked_fill(~first_BS, IGNORED)))


def _stacked(first: EditPrompts, second: EditPrompts) -> EditPrompts:
    """Stack both into one batch, with the shorter rows padded on the right."""
    width = max(first.encoded.input_ids_BS.shape[1], second.encoded.input_ids_BS.shape[1])

    def together(name: str, fill: int) -> Tensor:
        parts = [getattr(in_context.encoded, name) for in_context in (first, second)]
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])

    encoded = Encoded(together("input_ids_BS", 0), together("attention_mask_BS", 0), together("labels_BS", IGNORED))
    joined = [torch.cat([getattr(first, name), getattr(second, name)]) for name in ("edit_B", "position_B", "weight_B")]
    return EditPrompts(encoded, *joined)
