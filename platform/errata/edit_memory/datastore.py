"""Datastore of references: last states with the tokens that follow them, mixed into the next token's distribution.

T tokens, F tokens at which a reference is near, H hidden size, N rows of the bank, K nearest ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errata.edit_memory.bank import Bank
from errata.edit_memory.lookup import NONE, Fired, unit


class MixedLogits(NamedTuple):
    """The logits with the references mixed in, and the row that decided it at each token."""

    logits_TV: Tensor
    fired: Fired


def mixed(rows: Mapping[str, Tensor], state_TH: Tensor, logits_TV: Tensor) -> MixedLogits:
    """Return log(lambda r + (1 - lambda) p) at tokens whose nearest row reaches its threshold; other tokens keep their bits.

    `state_TH` are the inputs of the output layer. r(y) sums softmax(-d / T) over those of the K nearest rows whose token is y,
    where d = |x - k|^2 between states of length 1. The nearest row that reaches its threshold gives lambda, T and K
    (`share`, `temperature`, `nearest`).
    """
    cosine_TN = unit(state_TH) @ rows["key"].T
    fits_TN = cosine_TN >= rows["threshold"]
    score_T, row_T = cosine_TN.masked_fill(~fits_TN, -torch.inf).max(1)
    found = Fired(torch.where(torch.isfinite(score_T), row_T, NONE), score_T)
    at = (found.row_T != NONE).nonzero()[:, 0]
    if not len(at):
        return MixedLogits(logits_TV, found)
    cosine_FN, first_F = cosine_TN[at], row_T[at]
    share_F1, temperature_F1, nearest_F1 = (rows[name][first_F, None] for name in ("share", "temperature", "nearest"))
    cosine_FK, row_FK = cosine_FN.topk(min(int(nearest_F1.max()), cosine_FN.shape[1]), dim=1)
    score_FK = (2 * cosine_FK - 2) / temperature_F1
    rank_K = torch.arange(score_FK.shape[1], device=score_FK.device)
    weight_FK = score_FK.masked_fill(rank_K >= nearest_F1, -torch.inf).softmax(1)
    vote_FV = weight_FK.new_zeros(len(at), logits_TV.shape[1]).scatter_add(1, rows["token"][row_FK], weight_FK)
    own_FV = logits_TV[at].float().log_softmax(1)
    both_FV = torch.logaddexp(share_F1.log() + vote_FV.log(), (1 - share_F1).log() + own_FV)
    return MixedLogits(logits_TV.index_copy(0, at, both_FV.to(logits_TV)), found)


class DatastoreHooks:
    """The hooks that make a model read a datastore. Tokens are decided one by one, by the input of the output layer alone."""

    def __init__(self, model: Any, bank: Bank) -> None:
        self.bank = bank
        self.handles = [
            model.register_forward_pre_hook(self),  # By this one the memory of a model is found.
            model.get_output_embeddings().register_forward_hook(self._mix),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __call__(self, _model: nn.Module, _args: tuple[Any, ...]) -> None: ...

    def _mix(self, _head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        state_TH = args[0].flatten(0, -2).to(logits.device)
        return mixed(self.bank.on(logits.device), state_TH, logits.flatten(0, -2)).logits_TV.view_as(logits)
