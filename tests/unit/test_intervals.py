"""Intervals whose ends follow from the binomial distribution, and what may not move them."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from errata.measures.intervals import Mark, median_ratio_interval, ratio_interval


def marks(right: list[float], questions: int = 1) -> list[Mark]:
    return [(f"edit {i}", value, 1.0) for i, value in enumerate(right) for _ in range(questions)]


@pytest.mark.parametrize(("num_right", "num_edits"), [(1, 4), (9, 10), (50, 100), (700, 1000)])
def test_a_share_varies_as_a_binomial(num_right: int, num_edits: int) -> None:
    found = ratio_interval(marks([1.0] * num_right + [0.0] * (num_edits - num_right)))
    assert found is not None
    wanted = binom.ppf([0.025, 0.975], num_edits, num_right / num_edits) / num_edits
    assert found == pytest.approx(tuple(wanted), abs=0.006)


def test_ten_questions_of_an_edit_are_no_more_evidence_than_one() -> None:
    one, ten = ratio_interval(marks([1.0, 0.0] * 10)), ratio_interval(marks([1.0, 0.0] * 10, questions=10))
    assert one == ten
    apart = ratio_interval([(f"{owner} {i}", part, whole) for i, (owner, part, whole) in enumerate(marks([1, 0] * 10, 10))])
    assert one is not None and apart is not None and apart[1] - apart[0] < (one[1] - one[0]) / 2


def test_the_same_as_scipy_finds() -> None:
    values = np.random.default_rng(1).random(200)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=2).confidence_interval
    assert ratio_interval(marks(list(values))) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_what_does_not_vary_has_no_width_and_what_is_not_there_no_interval() -> None:
    assert ratio_interval(marks([1.0] * 5)) == (1.0, 1.0)
    assert ratio_interval([]) is None
    assert ratio_interval([("an edit", 0.0, 0.0)]) is None  # a ratio to nothing
    assert ratio_interval(marks([1.0, 0.0, 1.0])) == ratio_interval(marks([1.0, 0.0, 1.0]))


def test_a_ratio_of_medians_is_of_the_same_sentences() -> None:
    before = [1.0, 2.0, 5.0, 9.0, 30.0]
    assert median_ratio_interval([2 * ppl for ppl in before], before) == pytest.approx((2.0, 2.0))
    low, high = median_ratio_interval([*before[:4], math.inf], before)
    assert (low, high) == (1.0, math.inf)  # three or more of five draws are the last sentence in 6 %
    assert median_ratio_interval([math.inf] * 3, [1.0] * 3) == (math.inf, math.inf)
    with pytest.raises(ValueError, match="two numbers a sentence"):
        median_ratio_interval([1.0], [1.0, 2.0])


def test_a_thousand_edits_take_milliseconds() -> None:
    many = marks([1.0, 0.0] * 500, questions=2)
    ratio_interval(many)
    began = time.process_time()
    ratio_interval(many)
    assert time.process_time() - began < 0.2  # 0.02 on an idle core
