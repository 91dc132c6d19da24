"""Lookup in a bank: what the records of each kind do at a token. Pure functions of tensors, the same for every engine.

T tokens, I in-features, N rows of the bank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

ANY = -1  # of `after`: the row may follow any token
NONE = -1  # of a decision: no row fires
# Forced logits leave no doubt in fp32 and in 16 bit, stay finite, and survive soft caps and repetition penalties.
FORCE = 20.0


class Fired(NamedTuple):
    """The row that fires at each token, `NONE` where none does, and the cosine of the nearest row that may."""

    row_T: Tensor
    score_T: Tensor


def fired(rows: Mapping[str, Tensor], input_TI: Tensor, ids_T: Tensor | None) -> Fired:
    """Return the nearest row at each token whose cosine reaches its threshold and which may follow the token that is read.

    Each token is decided by itself, so neither its text's neighbours nor the parts in which the text is read matter. `ids_T`
    are the tokens that were read; without them only rows fire that may follow any.
    """
    cosine_TN = unit(input_TI) @ rows["key"].T
    may_TN = rows["after"] == ANY if ids_T is None else (rows["after"] == ANY) | (rows["after"] == ids_T[:, None])
    fits_TN = may_TN & (cosine_TN >= rows["threshold"])
    score_T, row_T = cosine_TN.masked_fill(~fits_TN, -torch.inf).max(1)
    return Fired(torch.where(torch.isfinite(score_T), row_T, NONE), cosine_TN.masked_fill(~may_TN, -torch.inf).amax(1))


class Retrieved(NamedTuple):
    """A record's place in its bank, None if no record fits, and how far the best one is above its threshold, as a share."""

    record: int | None
    margin: float


def retrieved(rows: Mapping[str, Tensor], lexical_D: Tensor, end_I: Tensor) -> Retrieved:
    """Return the record that fits a question best, by its words or by the state at its end.

    `lexical_D` are the shares of the records' words that the question has, `end_I` is the input of the module. Each score is
    compared with its own threshold, because words find what states miss, and the other way round. 0 stands for "none fits".
    """
    dense_N = rows["key"] @ unit(end_I[None])[0]
    scores = ((dense_N, rows["threshold"]), (lexical_D.to(dense_N), rows["lexical_threshold"]))
    margin_N = torch.stack([(score - least) / (1 - least).clamp_min(1e-6) for score, least in scores]).amax(0)
    margin, best = (one.item() for one in margin_N.max(0))
    return Retrieved(int(best) if margin >= 0 else None, float(margin))


def unit(rows_TI: Tensor) -> Tensor:
    """Return rows of length 1 in fp32."""
    return normalize(rows_TI.float(), dim=1)


def forced(rows: Mapping[str, Tensor], row_T: Tensor, logits_TV: Tensor) -> Tensor:
    """Return the logits with the token of each row that fires as the only likely one; other tokens keep their bits."""
    at = (row_T != NONE).nonzero()[:, 0]
    if not len(at):
        return logits_TV
    token_F = rows["token"][row_T[at]]
    chosen_FV = logits_TV[at]
    chosen_FV = (chosen_FV - chosen_FV.amax(1, keepdim=True) - FORCE).scatter(1, token_F[:, None], FORCE)
    return logits_TV.index_copy(0, at, chosen_FV)
