"""Cluster bootstrap of scores: percentile intervals at 95 %, where the resampled unit is the edit.

Edits are resampled, not questions: the rephrasings and probes of one edit succeed or fail together, so resampling questions
would give intervals that are too narrow. Scores that enter one statistic come from the same resample. The seed is fixed, so
equal answers give equal intervals. If all answers are right, or all wrong, the interval has no width, which is not certainty:
after n edits without a failure the failure rate may still be about 3 / n.

Suffixes of arrays: R resamples, N owners (edits, sentences or texts), K ratios, M = 2 K table columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

NUM_RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
_CELLS = 2_000_000  # indices drawn in one block: 16 MB, however many edits there are

Interval = tuple[float, float]


class OwnedRatio(NamedTuple):
    """The contribution of one question to a score: a numerator and a denominator, and the owner that is resampled.

    `owner` is the prompt of the edit that the question belongs to.
    """

    owner: str
    numerator: float
    denominator: float = 1.0


def ratio_interval(ratios: Iterable[OwnedRatio], seed: int = SEED) -> Interval | None:
    """Bootstrap the sum of numerators over the sum of denominators; None without a ratio.

    With denominators of 1 this is a mean over questions. Resamples whose denominator is 0 are left out.
    """
    ratios_RK = _resampled_ratios([ratios], seed)
    return _percentiles(ratios_RK[:, 0]) if len(ratios_RK) else None


def harmonic_interval(kinds: Iterable[Sequence[OwnedRatio]], seed: int = SEED) -> Interval | None:
    """Bootstrap the harmonic mean of several ratios over the same resampled owners; empty kinds do not take part.

    Resamples in which one of the denominators is 0 are left out.
    """
    ratios_RK = _resampled_ratios([ratios for ratios in kinds if ratios], seed)
    if not len(ratios_RK):
        return None
    with np.errstate(divide="ignore"):  # a ratio of 0 makes its inverse infinite and the harmonic mean 0
        return _percentiles(ratios_RK.shape[1] / (1 / ratios_RK).sum(axis=1))


def paired_interval(statistic: Callable[..., Any], now: Sequence[float], before: Sequence[float], seed: int = SEED) -> Interval:
    """Bootstrap statistic(now) / statistic(before) over the same resampled sentences.

    `statistic` takes an array and `axis`, like `numpy.mean`. Raises `ValueError` if the lengths differ or are 0.
    """
    if len(now) != len(before) or not now:
        raise ValueError(f"a paired interval needs two values for each sentence, not {len(now)} and {len(before)} values")
    now_N, before_N = np.array(now), np.array(before)
    ratios = [statistic(now_N[i], axis=1) / statistic(before_N[i], axis=1) for i in _draws(len(now), seed)]
    return _percentiles(np.nan_to_num(np.concatenate(ratios), nan=math.inf, posinf=math.inf))


def _resampled_ratios(kinds: Sequence[Iterable[OwnedRatio]], seed: int) -> np.ndarray:
    """Return the ratio of each kind in each resample, [R, K], without resamples that have a denominator of 0."""
    owners: dict[str, list[float]] = {}
    for kind, ratios in enumerate(kinds):
        for owner, numerator, denominator in ratios:
            sums = owners.setdefault(owner, [0.0] * 2 * len(kinds))
            sums[2 * kind] += numerator
            sums[2 * kind + 1] += denominator
    if not owners:
        return np.empty((0, len(kinds)))
    table_NM = np.array(list(owners.values()))
    size = len(table_NM)
    is_small = size * NUM_RESAMPLES <= _CELLS
    counts = (_all_counts(size, seed),) if is_small else (_counts(drawn_RN, size) for drawn_RN in _draws(size, seed))
    sums_RM = np.concatenate([counts_RN @ table_NM for counts_RN in counts])
    numerators_RK, denominators_RK = sums_RM[:, ::2], sums_RM[:, 1::2]
    is_defined_R = (denominators_RK > 0).all(axis=1)
    return numerators_RK[is_defined_R] / denominators_RK[is_defined_R]


def _draws(size: int, seed: int) -> Iterator[np.ndarray]:
    """Draw indices with replacement, [R, N], in blocks of resamples."""
    rng = np.random.default_rng(seed)
    block = max(1, min(NUM_RESAMPLES, _CELLS // size))
    for start in range(0, NUM_RESAMPLES, block):
        yield rng.integers(0, size, (min(block, NUM_RESAMPLES - start), size))


@lru_cache(maxsize=4)
def _all_counts(size: int, seed: int) -> np.ndarray:
    """Return the counts of all resamples, cached: a checkpoint needs dozens of intervals over three or four sizes.

    An entry takes at most 16 MB.
    """
    return np.concatenate([_counts(drawn_RN, size) for drawn_RN in _draws(size, seed)])


def _counts(drawn_RN: np.ndarray, size: int) -> np.ndarray:
    """Count how often each owner was drawn, [R, N]; resampled sums are then one matrix product instead of a gather."""
    rows = len(drawn_RN)
    places = (drawn_RN + size * np.arange(rows)[:, None]).ravel()
    return np.bincount(places, minlength=rows * size).reshape(rows, size).astype(float)


def _percentiles(values_R: np.ndarray) -> Interval:
    """Return the outer percentiles, always values that occur: interpolation would fail beside an infinite value."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail], method="nearest")
    return float(low), float(high)
