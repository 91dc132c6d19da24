"""How far a score would have moved with other edits of the same kind: percentile bootstrap, 95 %.

Edits are drawn, not questions: the rephrasings and probes of an edit succeed and fail together, and counting each by itself
would make intervals too narrow. The seed is fixed, so the same answers give the same interval. Where nothing varies (all right,
or all wrong) the interval has no width, which is not certainty: after n edits without a fault the share of faults may still
be about 3 / n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

NUM_RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
_CELLS = 2_000_000  # drawn at once: 16 MB of indices, however many edits there are

Interval = tuple[float, float]
Mark = tuple[str, float, float]  # whose it is (the edit's prompt), what it counts for, out of how much


def ratio_interval(marks: Iterable[Mark], seed: int = SEED) -> Interval | None:
    """Of (sum of the second entries) / (sum of the third), over resampled owners; None without a mark.

    With 1 as third entry that is a mean over questions. Resamples in which nothing counts are left out.
    """
    owners: dict[str, list[float]] = {}
    for owner, part, whole in marks:
        held = owners.setdefault(owner, [0.0, 0.0])
        held[0] += part
        held[1] += whole
    if not owners:
        return None
    table_N2 = np.array(list(owners.values()))
    size = len(table_N2)
    is_small = size * NUM_RESAMPLES <= _CELLS
    counts = (_all_counts(size, seed),) if is_small else (_counts(drawn_RN, size) for drawn_RN in _draws(size, seed))
    sums_R2 = np.concatenate([counts_RN @ table_N2 for counts_RN in counts])
    counted_R2 = sums_R2[sums_R2[:, 1] > 0]
    return _between(counted_R2[:, 0] / counted_R2[:, 1]) if len(counted_R2) else None


def median_ratio_interval(now: Sequence[float], before: Sequence[float], seed: int = SEED) -> Interval:
    """Of median(now) / median(before), both over the same resampled sentences. Raises `ValueError` for different lengths."""
    if len(now) != len(before) or not now:
        raise ValueError(f"two numbers a sentence are needed, not {len(now)} and {len(before)}")
    now_N, before_N = np.array(now), np.array(before)
    ratios = [np.median(now_N[i], axis=1) / np.median(before_N[i], axis=1) for i in _draws(len(now), seed)]
    return _between(np.nan_to_num(np.concatenate(ratios), nan=math.inf, posinf=math.inf))


def _draws(size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices with replacement, [R, N], in blocks of resamples."""
    rng = np.random.default_rng(seed)
    block = max(1, min(NUM_RESAMPLES, _CELLS // size))
    for start in range(0, NUM_RESAMPLES, block):
        yield rng.integers(0, size, (min(block, NUM_RESAMPLES - start), size))


@lru_cache(maxsize=2)
def _all_counts(size: int, seed: int) -> np.ndarray:
    """Kept, 16 MB at most: a checkpoint asks for a dozen intervals over the same number of edits."""
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
