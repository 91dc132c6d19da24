"""Bootstrap intervals against the binomial distribution, SciPy and closed forms."""

from __future__ import annotations

import math
import time
from statistics import harmonic_mean

import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from errata.evaluate.bootstrap import OwnedRatio, harmonic_interval, paired_interval, ratio_interval


def owned(right: list[float], questions: int = 1) -> list[OwnedRatio]:
    return [OwnedRatio(f"edit {i}", value) for i, value in enumerate(right) for _ in range(questions)]


@pytest.mark.parametrize(("num_right", "num_edits"), [(1, 4), (9, 10), (50, 100), (700, 1000)])
def test_a_share_varies_as_a_binomial(num_right: int, num_edits: int) -> None:
    found = ratio_interval(owned([1.0] * num_right + [0.0] * (num_edits - num_right)))
    assert found is not None
    wanted = binom.ppf([0.025, 0.975], num_edits, num_right / num_edits) / num_edits
    assert found == pytest.approx(tuple(wanted), abs=0.006)


def test_ten_questions_of_an_edit_are_no_more_evidence_than_one() -> None:
    one, ten = ratio_interval(owned([1.0, 0.0] * 10)), ratio_interval(owned([1.0, 0.0] * 10, questions=10))
    assert one == ten
    apart = ratio_interval(one._replace(owner=f"{one.owner} {i}") for i, one in enumerate(owned([1, 0] * 10, 10)))
    assert one is not None and apart is not None and apart[1] - apart[0] < (one[1] - one[0]) / 2


def test_the_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).random(200)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=2).confidence_interval
    assert ratio_interval(owned(list(values))) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_equal_answers_give_an_interval_without_width_and_no_answers_none() -> None:
    assert ratio_interval(owned([1.0] * 5)) == (1.0, 1.0)
    assert ratio_interval([]) is None
    assert ratio_interval([OwnedRatio("an edit", 0.0, 0.0)]) is None  # the denominator is 0
    assert ratio_interval(owned([1.0, 0.0, 1.0])) == ratio_interval(owned([1.0, 0.0, 1.0]))


def test_a_ratio_of_medians_uses_the_same_sentences() -> None:
    before = [1.0, 2.0, 5.0, 9.0, 30.0]
    for statistic in (np.median, np.mean):
        assert paired_interval(statistic, [2 * ppl for ppl in before], before) == pytest.approx((2.0, 2.0))
        low, high = paired_interval(statistic, [*before[:4], math.inf], before)
        assert (low, high) == (
            1.0,
            math.inf,
        )  # the last sentence is drawn 3 of 5 times or more in 6 %, never in 33 %
        assert paired_interval(statistic, [math.inf] * 3, [1.0] * 3) == (math.inf, math.inf)
    with pytest.raises(ValueError, match="two values for each sentence"):
        paired_interval(np.median, [1.0], [1.0, 2.0])


def test_a_ratio_of_means_is_a_ratio_of_sums() -> None:
    now, before = np.random.default_rng(3).random((2, 40))
    ratios = [OwnedRatio(f"sentence {i}", *map(float, pair)) for i, pair in enumerate(zip(now, before, strict=True))]
    assert paired_interval(np.mean, list(now), list(before)) == pytest.approx(ratio_interval(ratios))


def test_a_harmonic_mean_uses_scores_of_the_same_edits() -> None:
    right = [1.0] * 6 + [0.0] * 4
    same = harmonic_interval([owned(right)] * 3)
    assert same == pytest.approx(ratio_interval(owned(right)))  # all three vary together
    against = harmonic_interval([owned(right), owned([1 - value for value in right])])  # one rises as the other falls
    assert same is not None and against is not None
    low, high = (harmonic_mean([share, 1 - share]) for share in (0.1, 0.5))
    assert low <= against[0] < against[1] == pytest.approx(high) and against[1] - against[0] < same[1] - same[0]


def test_a_harmonic_mean_leaves_out_an_empty_kind() -> None:
    right = owned([1.0, 0.0] * 10)
    assert harmonic_interval([right, [], right]) == pytest.approx(ratio_interval(right))
    assert harmonic_interval([right, owned([0.0] * 20)]) == (0.0, 0.0)  # one ratio of 0 makes the harmonic mean 0
    assert harmonic_interval([[], []]) is None
    few = harmonic_interval([owned([1.0] * 20), [OwnedRatio("edit 0", 1.0)]])  # resamples without edit 0 are left out
    assert few == (1.0, 1.0)


def test_a_thousand_edits_take_milliseconds() -> None:
    many = owned([1.0, 0.0] * 500, questions=2)
    ratio_interval(many)
    began = time.process_time()
    ratio_interval(many)
    assert time.process_time() - began < 0.2  # 0.02 on an idle core
