"""Target vectors: what a module's output at the subject's last token should become, for every edit of a batch at once.

Papers: ROME (2202.05262, section 3.1), MEMIT (2210.07229, section 4.2). With h the output as it is and δ the change,

    minimise  mean over contexts and answer tokens of -log p(answer; h + δ)  +  κ KL(p | p_δ)  +  ω |δ| / |h|²,   |δ| <= c |h|

by Adam from δ = 0; p is the model's next word after "{subject} is a". The edits of a batch are independent, so one forward pass
serves all of them in each step; an edit whose loss is below the floor stays as it is while the others go on.
Deviations: the KL is taken at the last token of its prompt, as the papers say (public code reads it at the subject); with `eos`
the end of the answer is part of the answer; logits in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from errata.capture import Trunk
from errata.clock import stage
from errata.edit import Edit, EditBatch, EditRejected
from errata.editors.closed_form.subjects import Asked, ask
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
class Targets:
    """Of each edit: the output as it was in the bare prompt, its change, and the loss that was reached."""

    before_nD: Tensor
    change_nD: Tensor
    loss_n: Tensor

    @property
    def wanted_nD(self) -> Tensor:
        return self.before_nD + self.change_nD


@stage("targets")
def find_targets(model: LanguageModel, batch: EditBatch, site: str, contexts: Sequence[str], search: Search) -> Targets:
    """The targets of a batch at the output of module `site`. Raises `EditRejected` naming an edit whose loss is no number."""
    asked = ask(model, batch, contexts, search.eos)
    anchors = ask(model, EditBatch(tuple(_anchor(edit) for edit in batch)), eos=False)
    both = _stacked(asked, _first_token_only(anchors))
    module, trunk = model.module.get_submodule(site), Trunk(model.module, [site])
    num_rows = len(asked.edit_B)
    rows, edit_B, subject_B = torch.arange(len(both.edit_B), device=model.device), both.edit_B, both.subject_B
    clean: dict[str, Tensor] = {}

    def watch(_module: Any, _args: Any, output: Any) -> None:
        found_BD = _tensor(output)[rows, subject_B].detach()
        clean["BD"] = found_BD.to(torch.promote_types(found_BD.dtype, torch.float32))

    def changed_by(change_nD: Tensor) -> Any:
        def add(_module: Any, _args: Any, output: Any) -> Any:
            tensor = _tensor(output)
            added = tensor.index_put((rows, subject_B), change_nD[edit_B].to(tensor.dtype), accumulate=True)
            return (added, *output[1:]) if isinstance(output, tuple) else added

        return add

    # The answer tokens of the first rows are scored, the one "answer" of each anchor says where its next word is.
    tokens_B = both.encoded.predicts_BS.sum(1)
    row_T = torch.repeat_interleave(rows, tokens_B)
    scored_T = row_T < num_rows

    def run(hook: Any) -> tuple[Tensor, Tensor]:
        """(-log p of each answer token, log p of every next word after the anchors)."""
        handle = module.register_forward_hook(hook)
        try:
            with trunk.once(both.encoded):
                log_probs_TV = answer_log_probs(model.module, both.encoded)
        finally:
            handle.remove()
        return answer_nll(log_probs_TV, both.encoded)[scored_T], log_probs_TV[~scored_T]

    with torch.no_grad():
        _, anchor_nV = run(watch)
    bare = torch.arange(0, num_rows, len(contexts), device=model.device)
    before_nD = clean["BD"][bare]
    norm_n = before_nD.norm(dim=1)
    change_nD = torch.zeros_like(before_nD, requires_grad=True)
    optimizer = torch.optim.Adam([change_nD], lr=search.learning_rate)
    share_T = 1.0 / (tokens_B[row_T[scored_T]] * len(contexts))  # every context counts the same, every answer token in it
    finished_n = torch.zeros(len(batch), dtype=torch.bool, device=model.device)
    for step in range(search.num_steps):
        with torch.enable_grad():
            nll_T, now_nV = run(changed_by(change_nD))
            loss_n = torch.zeros_like(norm_n).index_add(0, edit_B[row_T[scored_T]], (share_T * nll_T).to(norm_n))
            loss_n = loss_n + search.kl_weight * (anchor_nV.exp() * (anchor_nV - now_nV)).sum(1)
            loss_n = loss_n + search.decay * change_nD.norm(dim=1) / norm_n.square()
        if not bool(torch.isfinite(loss_n).all()):
            index = int((~torch.isfinite(loss_n)).nonzero()[0])
            raise EditRejected("the search for its target gave no number", edit=batch.edits[index].id or index)
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


def _tensor(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _anchor(edit: Edit) -> Edit:
    """The prompt that must go on as before; of its answer the first token marks the place."""
    return Edit(f"{edit.subject} is a", ".", edit.subject)


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
    joined = [torch.cat([getattr(first, name), getattr(second, name)]) for name in ("edit_B", "subject_B", "weight_B")]
    return Asked(encoded, *joined)
