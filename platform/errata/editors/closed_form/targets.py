"""Target vectors: the wanted output of a module at the edit position, found by gradient descent for a whole batch.

Papers: ROME (2202.05262, section 3.1), MEMIT (2210.07229, section 4.2). With h the present output and δ its change,

    minimise  mean over contexts and answer tokens of -log p(answer; h + δ)  +  κ KL(p | p_δ)  +  ω |δ| / |h|²,   |δ| <= c |h|

by Adam from δ = 0; p is the model's next word after "{subject} is a". The edits of a batch are independent, so each step is one
forward pass for all of them; an edit whose loss is below the floor is frozen while the others continue.
Deviations: the KL is taken at the last token of its prompt, as the papers say (public code reads it at the subject), and left
out for an edit that is not written at its subject; with `eos` the end of the answer is part of the answer; logits in fp32.
n edits, D features of the output, R columns of a basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.edit import Code, EditBatch, EditRejected
from errata.editors.closed_form.contexts import Contexts
from errata.editors.closed_form.intervention import Intervention
from errata.model.language_model import LanguageModel
from errata.timing import timed


@dataclass(frozen=True)
class Search:
    """Settings of the search for targets; the defaults are MEMIT's published ones for Llama-3-8B.

    There are at most `num_steps - 1` updates: the last step only evaluates the loss.
    """

    num_steps: int = 25
    learning_rate: float = 0.1
    decay: float = 0.5  # ω
    clamp: float = 0.75  # c
    kl_weight: float = 0.0625  # κ
    loss_floor: float = 0.05
    eos: bool = True


@dataclass(frozen=True)
class OrthogonalityPenalty:
    """A loss term: `weight` times the mean of |cos(δ, b)| over the columns b of `basis_DR`, which are unit vectors."""

    weight: float
    basis_DR: Tensor

    def cost(self, change_nD: Tensor) -> Tensor:
        norms_n = change_nD.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return self.weight * (change_nD @ self.basis_DR.to(change_nD) / norms_n).abs().mean(dim=1)


@dataclass(frozen=True)
class Targets:
    """Result of the search: the outputs in the bare prompts, their changes, and the final losses."""

    before_nD: Tensor
    change_nD: Tensor
    loss_n: Tensor

    @property
    def wanted_nD(self) -> Tensor:
        return self.before_nD + self.change_nD


@timed("targets")
def find_targets(
    model: LanguageModel,
    batch: EditBatch,
    site: str,
    contexts: Contexts,
    search: Search,
    penalties: Sequence[OrthogonalityPenalty] = (),
) -> Targets:
    """Find the targets of a batch at the output of module `site`. Raises `EditRejected` if a loss is not finite."""
    intervention = Intervention(model, batch, site, contexts, search.eos)
    before_nD = intervention.before_nD
    norm_n = before_nD.norm(dim=1)
    change_nD = torch.zeros_like(before_nD, requires_grad=True)
    optimizer = torch.optim.Adam([change_nD], lr=search.learning_rate)
    finished_n = torch.zeros(len(batch), dtype=torch.bool, device=model.device)
    for step in range(search.num_steps):
        with torch.enable_grad():
            nll_n, kl_n = intervention.losses(change_nD)
            loss_n = nll_n + search.kl_weight * kl_n + search.decay * change_nD.norm(dim=1) / norm_n.square()
            loss_n = loss_n + sum(each.cost(change_nD) for each in penalties)
        if not bool(torch.isfinite(loss_n).all()):
            index = int((~torch.isfinite(loss_n)).nonzero()[0])
            raise EditRejected(
                "the search for its target gave no finite number", edit=batch.edits[index].id or index, code=Code.NOT_FINITE
            )
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
