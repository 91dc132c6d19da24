"""Lookup in a bank: what the records of each kind do at a token. Pure functions of tensors, the same for every engine.

T tokens, I in-features, N rows of the bank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from errata.edit_memory.asked_for import ask_for_the_same
from errata.edit_memory.bank import Record
from errata.edit_memory.prompt_form import AskedQuestion
from errata.model.said_answers import with_tokens
from errata.text.answers import says
from errata.text.dates import Period, asked_time
from errata.text.rules import same_text

ANY = -1  # of `after`: the row may follow any token
NONE = -1  # of a decision: no row fires


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


class Candidate(NamedTuple):
    """A record that may fit a question, and the cosine of the two: of one of its wordings, which fits from `least` on."""

    record: Record
    score: float
    wording: str = ""
    least: float = 0.0


def fitting(candidates: Iterable[Candidate], asked: AskedQuestion, time: Period | None = None) -> list[Candidate]:
    """Return the candidates that fit a question, which asks about `time` if it names one.

    Their cosines reach their thresholds, they ask for the same thing, not of another time, and the messages before them stand
    in the prompt, too.
    """
    return [one for one in candidates if one.score >= one.least and _may_fit(one, asked, time)]


def best_fit(candidates: Iterable[Candidate], asked: AskedQuestion, time: Period | None = None) -> Candidate | None:
    """Return the candidate that fits best, None if there is none.

    Of those that fit alike, one whose own question names the `time` is taken, then one of the prompt's own form, and then the
    one that held for most of the time; then the one whose own question it is, and then the latest.
    """
    question, found = same_text(asked.question), list(candidates)

    def rank(place: int) -> tuple[float, bool, bool, int, str, bool, int]:
        record, score = found[place].record, found[place].score
        days = 0 if time is None else record.period.num_shared_days(time)
        names_it = time is not None and asked_time(record.question) is not None
        form, is_own = record.in_chat == asked.in_chat, record.question == question
        return round(score, 3), names_it, form, days, record.valid_from, is_own, place

    return found[max(range(len(found)), key=rank)] if found else None


def _may_fit(one: Candidate, asked: AskedQuestion, time: Period | None) -> bool:
    record, wording = one.record, one.wording or one.record.question
    is_about = not record.subject or says(asked.question.casefold(), record.subject.casefold())  # South America is not America.
    follows = all(each in asked.text for each in record.earlier_messages)
    own = None if time is None else asked_time(wording)
    is_of_time = own is None or time is None or own.period.num_shared_days(time) > 0
    return is_about and follows and is_of_time and ask_for_the_same(wording, asked.question)


def unit(rows_TI: Tensor) -> Tensor:
    """Return rows of length 1 in fp32."""
    return normalize(rows_TI.float(), dim=1)


def forced(rows: Mapping[str, Tensor], row_T: Tensor, logits_TV: Tensor) -> Tensor:
    """Return the logits with the token of each row that fires as the only likely one; other tokens keep their bits."""
    at = (row_T != NONE).nonzero()[:, 0]
    return with_tokens(logits_TV, at, rows["token"][row_T[at]])
