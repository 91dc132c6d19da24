"""Target vectors: what a module's output where an edit is written should become, for every edit of a batch at once.

Papers: ROME (2202.05262, section 3.1), MEMIT (2210.07229, section 4.2). With h the output as it is and δ the change,

    minimise  mean over contexts and answer tokens of -log p(answer; h + δ)  +  κ KL(p | p_δ)  +  ω |δ| / |h|²,   |δ| <= c |h|

by Adam from δ = 0; p is the model's next word after "{subject} is a". The edits of a batch are independent, so one forward pass
serves all of them in each step; an edit whose loss is below the floor stays as it is while the others go on.
Deviations: the KL is taken at the last token of its prompt, as the papers say (public code reads it at the subject), and left
out for an edit that is not written at its subject; with `eos` the end of the answer is part of the answer; logits in fp32.
n edits, B rows, T answer tokens, D features of the output, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from errata.capture import Trunk
from errata.clock import stage
from errata.edit import Edit, EditBatch, EditRejected
from errata.editors.closed_form.subjects import Asked, Contexts, ask
from errata.encode import IGNORED, Encoded, answer_log_probs, answer_nll
from errata.model import LanguageModel


@dataclass(frozen=True)
class Search:
    """The published constants are MEMIT's for Llama-3-8B. At most `num_steps - 1` updates: the last step only looks."""

    num_steps: int = 25
    learning_rate: float = 0.1
    decay: float = 0.5  # ω
    clamp: float = 0.75  # c
    kl_weight: float = 0.0625  # κ
    loss_floor: float = 0.05
    eos: bool = True


@dataclass(frozen=True)
class Avoided:
    """Adds `weight` times the mean of |cos(δ, b)| over the columns b of `basis_DR`, which are orthonormal, to the loss."""

    weight: float
    basis_DR: Tensor

    def cost(self, change_nD: Tensor) -> Tensor:
        norms_n = change_nD.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return self.weight * (change_nD @ self.basis_DR.to(change_nD) / norms_n).abs().mean(dim=1)


@dataclass(frozen=True)
class Targets:
    """Of each edit: the output as it was in the bare prompt, its change, and the loss that was reached."""

    before_nD: Tensor
    change_nD: Tensor
    loss_n: Tensor

    @property
    def wanted_nD(self) -> Tensor:
        return self.before_nD + self.change_nD


@stage("targets")
def find_targets(
    model: LanguageModel,
    batch: EditBatch,
    site: str,
    contexts: Contexts,
    search: Search,
    avoided: Sequence[Avoided] = (),
) -> Targets:
    """The targets of a batch at the output of module `site`. Raises `EditRejected` naming an edit whose loss is no number."""
    site_of = Site(model, batch, site, contexts, search.eos)
    before_nD, anchor_mV = site_of.as_it_is()
    norm_n = before_nD.norm(dim=1)
    change_nD = torch.zeros_like(before_nD, requires_grad=True)
    optimizer = torch.optim.Adam([change_nD], lr=search.learning_rate)
    finished_n = torch.zeros(len(batch), dtype=torch.bool, device=model.device)
    for step in range(search.num_steps):
        with torch.enable_grad():
            nll_n, kl_n = site_of.losses(change_nD, anchor_mV)
            loss_n = nll_n + search.kl_weight * kl_n + search.decay * change_nD.norm(dim=1) / norm_n.square()
            loss_n = loss_n + sum(each.cost(change_nD) for each in avoided)
        if not bool(torch.isfinite(loss_n).all()):
            index = int((~torch.isfinite(loss_n)).nonzero()[0])
            raise EditRejected("the search for its target gave no finite number", edit=batch.edits[index].id or index)
        finished_n |= loss_n.detach() < search.loss_floor
        if bool(finished_n.all()) or step == search.num_steps - 1:
            break
        optimizer.zero_grad()
        loss_n.sum().backward()
        with torch.no_grad():
            kept_nD = change_nD.clone()
            optimizer.step()
            change_nD *= (search.clamp * norm_n / change_nD.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None]
            change_nD[finished_n] = kept_nD[finished_n]
    return Targets(before_nD, change_nD.detach(), loss_n.detach())


class Site:
    """A module whose output is changed where edits are written, and the prompts that show what follows from it.

    The rows are the edits in their contexts, then the anchors, "{subject} is a", that must go on as before. Of an anchor's
    answer the first token marks the place where its next word is read.
    """

    def __init__(self, model: LanguageModel, batch: EditBatch, site: str, contexts: Contexts, eos: bool) -> None:
        asked = ask(model, batch, contexts, eos)
        self.with_anchor = [index for index, edit in enumerate(batch) if contexts.are_at_subject(edit)]
        anchors = [_anchor(batch.edits[index]) for index in self.with_anchor]
        self.rows = _stacked(asked, _first_token_only(_anchored(model, anchors, self.with_anchor))) if anchors else asked
        self.model, self.module, self.num_contexts = model, model.module.get_submodule(site), len(contexts.texts)
        self.num_edits, num_asked = len(batch), len(asked.edit_B)
        self.bare_n = torch.arange(0, num_asked, self.num_contexts, device=model.device)
        self.trunk = Trunk(model.module, [site])
        tokens_B = self.rows.encoded.predicts_BS.sum(1)
        row_T = torch.repeat_interleave(torch.arange(len(tokens_B), device=model.device), tokens_B)
        self.is_answer_T = row_T < num_asked
        answer_T = row_T[self.is_answer_T]
        self.edit_T = self.rows.edit_B[answer_T]
        self.share_T = 1.0 / (tokens_B[answer_T] * self.num_contexts)  # contexts count the same, and their answer tokens

    @torch.no_grad()
    def as_it_is(self) -> tuple[Tensor, Tensor]:
        """The module's output in the bare prompts, [n, D] in fp32 at least, and log p after the m anchors, [m, V]."""
        found: list[Tensor] = []

        def watch(_module: Any, _args: Any, output: Any) -> None:
            found.append(self.rows.at_place(_tensor(output)))

        with self._hooked(watch):
            log_probs_TV = answer_log_probs(self.model.module, self.rows.encoded)
        return found[0][self.bare_n], log_probs_TV[~self.is_answer_T]

    def losses(self, change_nD: Tensor, anchor_mV: Tensor) -> tuple[Tensor, Tensor]:
        """Of each edit the mean -log p of its answer and the KL of its anchor, with the module's output changed."""
        rows = torch.arange(len(self.rows.edit_B), device=change_nD.device)

        def add(_module: Any, _args: Any, output: Any) -> Any:
            tensor = _tensor(output)
            change_BD = change_nD[self.rows.edit_B].to(tensor.dtype)
            added = tensor.index_put((rows, self.rows.place_B), change_BD, accumulate=True)
            return (added, *output[1:]) if isinstance(output, tuple) else added

        with self._hooked(add):
            log_probs_TV = answer_log_probs(self.model.module, self.rows.encoded)
        nll_T = answer_nll(log_probs_TV, self.rows.encoded)[self.is_answer_T]
        nothing_n = change_nD.new_zeros(self.num_edits)
        nll_n = nothing_n.index_add(0, self.edit_T, (self.share_T * nll_T).to(nothing_n))
        kl_m = (anchor_mV.exp() * (anchor_mV - log_probs_TV[~self.is_answer_T])).sum(1)
        owner_m = torch.tensor(self.with_anchor, device=change_nD.device, dtype=torch.long)
        return nll_n, nothing_n.index_add(0, owner_m, kl_m.to(nothing_n))

    @contextmanager
    def _hooked(self, hook: Any) -> Iterator[None]:
        handle = self.module.register_forward_hook(hook)
        try:
            with self.trunk.once(self.rows.encoded):
                yield
        finally:
            handle.remove()


def _tensor(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _anchor(edit: Edit) -> Edit:
    return Edit(f"{edit.subject} is a", ".", edit.subject)


def _anchored(model: LanguageModel, anchors: Sequence[Edit], owners: Sequence[int]) -> Asked:
    asked = ask(model, EditBatch(tuple(anchors)), Contexts(), eos=False)
    return replace(asked, edit_B=torch.tensor(owners, device=model.device))


def _first_token_only(asked: Asked) -> Asked:
    labels_BS = asked.encoded.labels_BS
    marked_BS = labels_BS != IGNORED
    first_BS = marked_BS & (marked_BS.cumsum(1) == 1)
    return replace(asked, encoded=replace(asked.encoded, labels_BS=labels_BS.masked_fill(~first_BS, IGNORED)))


def _stacked(first: Asked, second: Asked) -> Asked:
    """One batch of both, the shorter padded on the right."""
    width = max(first.encoded.input_ids_BS.shape[1], second.encoded.input_ids_BS.shape[1])

    def together(name: str, fill: int) -> Tensor:
        parts = [getattr(asked.encoded, name) for asked in (first, second)]
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])

    encoded = Encoded(together("input_ids_BS", 0), together("attention_mask_BS", 0), together("labels_BS", IGNORED))
    joined = [torch.cat([getattr(first, name), getattr(second, name)]) for name in ("edit_B", "place_B", "weight_B")]
    return Asked(encoded, *joined)
