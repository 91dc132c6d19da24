"""Said answers: tokens that take the place of the model's own, as long as the answer so far is theirs.

B rows, S sequence, T tokens, F of them whose choice is forced, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

# Forced logits leave no doubt in fp32 and in 16 bit, stay finite, and survive soft caps and repetition penalties.
FORCE = 20.0


def with_tokens(logits_TV: Tensor, at_F: Tensor, token_F: Tensor) -> Tensor:
    """Return logits with a token as the only likely one in each of the rows `at_F`; other rows keep their bits."""
    if not len(at_F):
        return logits_TV
    chosen_FV = logits_TV[at_F]
    chosen_FV = (chosen_FV - chosen_FV.amax(1, keepdim=True) - FORCE).scatter(1, token_F[:, None], FORCE)
    return logits_TV.index_copy(0, at_F, chosen_FV)


def with_said(logits_TV: Tensor, due: Mapping[int, int]) -> Tensor:
    """Return logits with the token that is due in each of some rows, by row."""
    at_F, token_F = (torch.tensor(list(part), dtype=torch.long, device=logits_TV.device) for part in (due, due.values()))
    return with_tokens(logits_TV, at_F, token_F)


def said_tokens(answers: Iterable[Sequence[int]], said: Iterable[Sequence[int]]) -> dict[int, int]:
    """Return the said token at each place of given answers that it follows from, by place; places count on over all answers."""
    found, before = dict[int, int](), 0
    for given, wanted in zip(answers, said, strict=True):
        for place, token in zip(range(len(given)), wanted, strict=False):
            if list(given[:place]) == list(wanted[:place]):
                found[before + place] = token
        before += len(given)
    return found


class SaidAnswers:
    """A logits processor of transformers, by row; the answers begin behind `width` tokens."""

    def __init__(self, said: Sequence[Sequence[int]], width: int) -> None:
        self.said, self.width = said, width

    def __call__(self, input_ids_BS: Tensor, logits_BV: Tensor) -> Tensor:
        num_said = input_ids_BS.shape[1] - self.width
        answers = zip(input_ids_BS[:, self.width :].tolist(), self.said, strict=True)
        due = {
            row: wanted[num_said]
            for row, (ids, wanted) in enumerate(answers)
            if num_said < len(wanted) and ids == list(wanted[:num_said])
        }
        return with_said(logits_BV, due)
