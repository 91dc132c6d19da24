"""Figures of a load run from hand-made records with known answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from benchmarks.load_figures import (
    Phase,
    PostedBatch,
    Request,
    gap_figures,
    is_failed,
    is_misversioned,
    lifetimes,
    load_figures,
    paired_rates,
    stalls_ms,
)


def answer(start: float, end: float, versions: tuple[int, int] = (0, 0), at_least: int | None = None) -> Request:
    return Request(start, end, (start, end), *versions, at_least=at_least)


def stream(*tokens: float) -> Request:
    return Request(tokens[0] - 0.1, tokens[-1], tokens, 0, 0)


# posted at 10, 20 and 30, each live within a second
BATCHES = [PostedBatch(10, 11, 1), PostedBatch(20, 21, 2), PostedBatch(30, 31, 3)]


@pytest.mark.parametrize(
    ("request_", "is_wrong"),
    [
        (answer(0, 5), False),
        (answer(9, 12, (0, 1)), False),
        (answer(9, 12, (0, 0)), False),
        (answer(10.5, 10.6, (1, 1)), False),  # posted, not yet acknowledged: either may be
        (answer(10.5, 10.6, (0, 0)), False),
        (answer(11.5, 12, (0, 0)), True),  # begun after version 1 was acknowledged
        (answer(11.5, 12, (0, 1)), True),
        (answer(11.5, 12, (1, 1)), False),
        (answer(0, 9.9, (0, 1)), True),  # ended before version 1 was posted
        (answer(15, 35, (1, 3)), False),
        (answer(40, 41, (4, 4)), True),  # never made
        (answer(40, 41, (3, 2)), True),
        (answer(20.5, 20.6, (1, 1), at_least=1), False),
        (answer(20.5, 20.6, (1, 1), at_least=2), True),
        (answer(20.5, 20.6, (1, 2), at_least=2), False),
    ],
)
def test_an_answer_names_only_live_versions(request_: Request, is_wrong: bool) -> None:
    assert is_misversioned(request_, lifetimes(BATCHES, 0)) is is_wrong


def test_a_rollback_replaces_the_new_version_by_an_old_one() -> None:
    lives = lifetimes([*BATCHES, PostedBatch(40, 41, 1)], 0)
    assert lives[1] == [(10, 21), (40, math.inf)] and lives[3] == [(30, 41)]
    assert not is_misversioned(answer(45, 46, (1, 1)), lives)
    assert is_misversioned(answer(45, 46, (3, 3)), lives)
    assert not is_misversioned(answer(39, 42, (1, 3)), lives)


def test_a_batch_of_several_versions_skips_numbers() -> None:
    lives = lifetimes([PostedBatch(10, 14, 3)], 0)
    assert lives == {0: [(-math.inf, 14)], 1: [(10, 14)], 2: [(10, 14)], 3: [(10, math.inf)]}


def test_a_refused_batch_makes_no_version() -> None:
    assert lifetimes([PostedBatch(10, 11, None)], 5) == {5: [(-math.inf, math.inf)]}


@pytest.mark.parametrize(
    "change", [{"status": 500}, {"status": 0}, {"tokens": ()}, {"version_min": None}, {"version_max": None}]
)
def test_a_failed_answer_does_not_count_as_misversioned(change: dict[str, object]) -> None:
    request = replace(answer(45, 46, (9, 9)), **change)  # type: ignore[arg-type]
    assert is_failed(request) and not is_misversioned(request, lifetimes(BATCHES, 0))


@pytest.mark.parametrize(
    ("tokens", "swap", "ms"),
    [
        ((1.0, 2.0, 5.0, 6.0), (2.5, 3.0), [3000]),  # inside one pause
        ((1.0, 2.0, 5.0, 6.0), (1.5, 2.5), [3000]),  # over two: the longer
        ((1.0, 2.0, 5.0, 6.0), (5.1, 5.2), [1000]),
        ((1.0, 2.0, 5.0, 6.0), (2.0, 5.0), [3000]),  # just this pause, not its neighbours
        ((1.0, 2.0, 5.0, 6.0), (5.0, 5.5), [1000]),
        ((1.0, 2.0, 5.0, 6.0), (0.0, 9.0), [3000]),
        ((1.0, 2.0, 5.0, 6.0), (0.0, 1.0), []),  # before the first token
        ((1.0, 2.0, 5.0, 6.0), (6.0, 7.0), []),  # after the last
        ((1.0,), (0.5, 1.5), []),
    ],
)
def test_a_stall_is_the_longest_pause_that_overlaps_a_swap(
    tokens: tuple[float, ...], swap: tuple[float, float], ms: list[float]
) -> None:
    assert list(stalls_ms(stream(*tokens), [swap])) == pytest.approx(ms)


def test_each_swap_of_a_stream_counts() -> None:
    assert list(stalls_ms(stream(1, 2, 4, 5), [(1.2, 1.3), (3, 3.1)])) == pytest.approx([1000, 2000])


def test_throughput_is_paired() -> None:
    """10 tokens a second without edits and 9 with them; then 4 and 3, after something else slowed the machine."""
    phases = [Phase(0, 10, False), Phase(10, 20, True), Phase(20, 30, True), Phase(30, 40, False), Phase(40, 50, True)]
    num = {0: 100, 10: 90, 20: 30, 30: 40, 40: 500}
    requests = [Request(begin, begin + 10, tuple(begin + 10 * i / n for i in range(n)), 0, 0) for begin, n in num.items()]
    with_edits, without, ratios = paired_rates(requests, phases)
    assert (with_edits, without) == (6.0, 7.0), "the last phase has no partner"
    assert ratios == pytest.approx([0.9, 0.75])
    failed = replace(requests[1], status=500)
    assert paired_rates([requests[0], failed], phases[:2]) == (0.0, 10.0, [0.0])


def test_a_run_has_known_figures() -> None:
    steady = tuple(i / 10 for i in range(1, 101))  # without edits, 100 tokens in 10 s
    edited = tuple(10 + i / 10 for i in range(1, 100) if i not in (50, 51))  # a pause of 0.3 s at 15
    requests = [
        Request(0, 10, steady, 0, 0),
        Request(10, 20, edited, 0, 1),
        Request(12, 13, (12.5,), 0, 0, status=500),
        answer(17, 18, (0, 0)),  # version 1 is acknowledged
        Request(18, 19, (18.5,), None, None),
    ]
    found = load_figures(
        requests, [PostedBatch(14.8, 15.2, 1)], [(14.95, 15.05)], [Phase(0, 10.05, False), Phase(10.05, 20.1, True)]
    )
    assert (found.requests, found.failed, found.misversioned, found.edit_batches) == (5, 2, 1, 1)
    assert found.tokens == 100 + 97 + 1 + 2 + 1
    assert found.throughput_ratio == pytest.approx(99 / 100)
    assert (found.num_stalls, found.swap_ms_p50) == (1, pytest.approx(100))
    assert found.stall_ms_p99 == found.stall_ms_max == pytest.approx(300)
    assert json.loads(json.dumps(found.to_json()))["misversioned"] == 1


def test_percentiles_are_over_all_swaps() -> None:
    swaps = [(float(i), i + i / 1000) for i in range(1, 102)]  # 1 to 101 ms
    found = load_figures([], [], swaps, [])
    assert found.swap_ms_p50 == pytest.approx(51) and found.swap_ms_p99 == pytest.approx(100)


def test_missing_measurements_are_none() -> None:
    found = load_figures([], [], [], [])
    assert (found.requests, found.throughput_ratio, found.stall_ms_p99, found.swap_ms_p50) == (0, None, None, None)
    idle = load_figures([], [], [], [Phase(0, 1, False), Phase(1, 2, True)])
    assert idle.throughput_ratio is None and idle.throughput_ratio_lowest is None


def test_impossible_records_are_refused() -> None:
    with pytest.raises(ValueError, match="times run backwards: 1, 3, 2"):
        load_figures([Request(1, 2, (3.0,), 0, 0)], [], [], [])
    with pytest.raises(ValueError, match="times run backwards: 2, 1"):
        load_figures([], [PostedBatch(2, 1, 1)], [], [])
    with pytest.raises(ValueError, match="a phase ends after it begins, unlike the one at 3"):
        load_figures([], [], [], [Phase(3, 3, True)])
    with pytest.raises(ValueError, match="the phases at 0 and 1 are no pair"):
        load_figures([], [], [], [Phase(0, 1, True), Phase(1, 2, True)])


def test_gaps_are_of_the_phases_and_of_the_swaps_in_them() -> None:
    """A token comes every 100 ms; with edits there is one gap of 400 ms, in which a swap is."""
    without = stream(*(i / 10 for i in range(11)))
    with_edits = stream(2.0, 2.1, 2.5, 2.6, 2.7)
    failed = replace(stream(2.0, 3.0), status=500)
    across = stream(0.9, 1.9, 2.1)  # Only its last gap lies in a phase.
    phases = [Phase(0, 1, False), Phase(1.9, 3, True)]
    found = gap_figures([without, with_edits, failed, across], [(2.2, 2.3), (1.2, 1.3)], phases)
    assert found.gap_ms_p50_without == pytest.approx(100) and found.gap_ms_p99_without == pytest.approx(100)
    assert found.gap_ms_p50_with == pytest.approx(100) and found.gap_ms_p50_at_swap == pytest.approx(400)
    assert found.num_gaps_at_swap == 1 and found.gap_ms_p99_at_swap == pytest.approx(400)
    nothing = gap_figures([], [], [])
    assert nothing.num_gaps_at_swap == 0 and nothing.gap_ms_p99_with is None and nothing.tokens_per_s_with is None
