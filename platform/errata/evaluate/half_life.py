"""The half-life of an edit: the number of later edits after which half of the edits that were right are lost.

An edit that is right immediately after its batch is taken to survive a later edits with probability 2^(-a / h), whatever it is.
At a checkpoint each sampled edit is seen once, right or lost at its age, so h is the value that makes what is seen likeliest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Survival(NamedTuple):
    """An edit that was right at first: the number of edits made since, and whether it is right now."""

    age: int
    is_right: bool


def half_life(seen: Sequence[Survival]) -> float | None:
    """Return h in edits: infinite if none is lost, 0 if all are; None if no edit has an age.

    The derivative of the log-likelihood by the rate λ = log 2 / h falls with λ, so its root is found by bisection:
    Σ over the lost of a / (exp(λ a) - 1) = Σ over the right of a.
    """
    aged = [one for one in seen if one.age > 0]
    lost = [one.age for one in aged if not one.is_right]
    kept = sum(one.age for one in aged if one.is_right)
    if not aged:
        return None
    if not lost:
        return math.inf
    if not kept:
        return 0.0
    low, high = 0.0, len(lost) / kept  # a / (exp(λ a) - 1) < 1 / λ, so the root is below this rate.
    for _ in range(200):
        rate = (low + high) / 2
        if sum(_rate_of_loss(rate, age) for age in lost) > kept:
            low = rate
        else:
            high = rate
    return math.log(2) / high


def _rate_of_loss(rate: float, age: int) -> float:
    """Return a / (exp(λ a) - 1), by powers that do not overflow."""
    return -age * math.exp(-rate * age) / math.expm1(-rate * age)
