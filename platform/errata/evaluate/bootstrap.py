"""How far a score would have moved with other edits of the same kind: percentile bootstrap, 95 %.

Edits are drawn, not questions: the rephrasings and probes of an edit succeed and fail together, and counting each by itself
would make intervals too narrow. Scores that are joined are taken from the same draws. The seed is fixed, so the same answers
give the same interval. Where nothing varies (all right, or all wrong) the interval has no width, which is not certainty: after
n edits without a fault the share of faults may still be about 3 / n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

NUM_RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
_CELLS = 2_000_000  # drawn at once: 16 MB of indices, however many edits there are

Interval = tuple[float, float]
OwnedRatio = tuple[str, float, float]  # whose it is (the edit's prompt), what it counts for, out of how much


def ratio_interval(marks: Iterable[OwnedRatio], seed: int = SEED) -> Interval | None:
    """Of (sum of the second entries) / (sum of the third), over resampled owners; None without a mark.

    With 1 as third entry that is a mean over questions. Resamples in which nothing counts are left out.
    """
    ratios_RK = _ratios([marks], seed)
    return _between(ratios_RK[:, 0]) if len(ratios_RK) else None


def harmonic_interval(kinds: Iterable[Sequence[OwnedRatio]], seed: int = SEED) -> Interval | None:
    """Of the harmonic mean of such ratios, all over the same resampled owners; kinds without a mark do not take part.

    Resamples in which nothing counts for one of the others are left out.
    """
    ratios_RK = _ratios([marks for marks in kinds if marks], seed)
    if not len(ratios_RK):
        return None
    with np.errstate(divide="ignore"):  # 1 / 0 is infinite, and the mean 0
        return _between(ratios_RK.shape[1] / (1 / ratios_RK).sum(axis=1))


def paired_interval(statistic: Callable[..., Any], now: Sequence[float], before: Sequence[float], seed: int = SEED) -> Interval:
    """Of statistic(now) / statistic(before), both over the same resampled sentences; `statistic` is called as NumPy's mean is.

    Raises `ValueError` for different lengths.
    """
    if len(now) != len(before) or not now:
        raise ValueError(f"two numbers a sentence are needed, not {len(now)} and {len(before)}")
    now_N, before_N = np.array(now), np.array(before)
    ratios = [statistic(now_N[i], axis=1) / statistic(before_N[i], axis=1) for i in _draws(len(now), seed)]
    return _between(np.nan_to_num(np.concatenate(ratios), nan=math.inf, posinf=math.inf))


def _ratios(kinds: Sequence[Iterable[OwnedRatio]], seed: int) -> np.ndarray:
    """[R, K] over resampled owners: of each kind (sum of the second entries) / (sum of the third), where all count."""
    owners: dict[str, list[float]] = {}
    for place, marks in enumerate(kinds):
        for owner, part, whole in marks:
            held = owners.setdefault(owner, [0.0] * 2 * len(kinds))
            held[2 * place] += part
            held[2 * place + 1] += whole
    if not owners:
        return np.empty((0, len(kinds)))
    table_NM = np.array(list(owners.values()))
    size = len(table_NM)
    is_small = size * NUM_RESAMPLES <= _CELLS
    counts = (_all_counts(size, seed),) if is_small else (_counts(drawn_RN, size) for drawn_RN in _draws(size, seed))
    sums_RM = np.concatenate([counts_RN @ table_NM for counts_RN in counts])
    parts_RK, wholes_RK = sums_RM[:, ::2], sums_RM[:, 1::2]
    all_count_R = (wholes_RK > 0).all(axis=1)
    return parts_RK[all_count_R] / wholes_RK[all_count_R]


def _draws(size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices with replacement, [R, N], in blocks of resamples."""
    rng = np.random.default_rng(seed)
    block = max(1, min(NUM_RESAMPLES, _CELLS // size))
    for start in range(0, NUM_RESAMPLES, block):
        yield rng.integers(0, size, (min(block, NUM_RESAMPLES - start), size))


@lru_cache(maxsize=4)
def _all_counts(size: int, seed: int) -> np.ndarray:
    """Kept, 16 MB each at most: a checkpoint asks for dozens of intervals over three or four numbers of edits."""
    return np.concatenate([_counts(drawn_RN, size) for drawn_RN in _draws(size, seed)])


def _counts(drawn_RN: np.ndarray, size: int) -> np.ndarray:
    """How often each was drawn, [R, N]: a resample's sums are then a product with the table, faster than a gather."""
    rows = len(drawn_RN)
    places = (drawn_RN + size * np.arange(rows)[:, None]).ravel()
    return np.bincount(places, minlength=rows * size).reshape(rows, size).astype(float)


def _between(values_R: np.ndarray) -> Interval:
    """The values themselves, never between two of them: one may be infinite."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail], method="nearest")
    return float(low), float(high)
