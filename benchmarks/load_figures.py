"""Figures of a load run from its clients' records: failed and mis-versioned answers, throughput, stalls, swaps.

All times are seconds on one clock, the clients'. A version is known to become live between the post of its batch and the
answer to it. Only what follows from that counts, so uncertainty never makes an answer mis-versioned.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Interval = tuple[float, float]


@dataclass(frozen=True)
class Request:
    """One generation request.

    `tokens` are the times of its stream's events. `version_min` and `version_max` are the stamped versions, None without a
    stamp; `at_least` was sent in `X-Errata-At-Least`. `status` is the HTTP code, 0 if the connection broke; an error inside a
    stream that began with 200 counts as 500.
    """

    start: float
    end: float
    tokens: tuple[float, ...] = ()
    version_min: int | None = None
    version_max: int | None = None
    status: int = 200
    at_least: int | None = None


@dataclass(frozen=True)
class PostedBatch:
    """A waiting post, or a rollback: `version` was live on all replicas when it `returned`; None if none was made."""

    posted: float
    returned: float
    version: int | None


@dataclass(frozen=True)
class Phase:
    """A part of the run with or without edits; two consecutive phases are a pair."""

    begin: float
    end: float
    edits: bool


@dataclass(frozen=True)
class LoadFigures:
    """Result of a load run; None is not measured.

    The ratio is of tokens a second with edits to those without, over all pairs; lowest and highest are of single pairs. A stall
    is the longest pause of a stream that overlaps a swap; the figures are the 99th percentile and the longest.
    """

    requests: int
    failed: int
    misversioned: int
    edit_batches: int
    tokens: int
    throughput_ratio: float | None
    throughput_ratio_lowest: float | None
    throughput_ratio_highest: float | None
    num_stalls: int
    stall_ms_p99: float | None
    stall_ms_max: float | None
    swap_ms_p50: float | None
    swap_ms_p99: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def load_figures(
    requests: Sequence[Request],
    batches: Sequence[PostedBatch],
    swaps: Sequence[Interval],
    phases: Sequence[Phase],
    first_version: int = 0,
) -> LoadFigures:
    """Compute the figures of a run.

    `batches` are in the order in which their versions went live, after `first_version`. `swaps` are the intervals of the swaps;
    if unknown, a batch's `(posted, returned)`, which contains the swap, gives a stall that is too long rather than too short.
    Raises `ValueError` for times that run backwards.
    """
    _check(requests, batches, swaps, phases)
    lives, swaps = lifetimes(batches, first_version), sorted(swaps)
    pauses = [ms for request in requests for ms in stalls_ms(request, swaps)]
    took_ms = [(end - begin) * 1e3 for begin, end in swaps]
    with_edits, without, ratios = paired_rates(requests, phases)
    return LoadFigures(
        requests=len(requests),
        failed=sum(map(is_failed, requests)),
        misversioned=sum(is_misversioned(request, lives) for request in requests),
        edit_batches=sum(batch.version is not None for batch in batches),
        tokens=sum(len(request.tokens) for request in requests),
        throughput_ratio=with_edits / without if without else None,
        throughput_ratio_lowest=min(ratios, default=None),
        throughput_ratio_highest=max(ratios, default=None),
        num_stalls=len(pauses),
        stall_ms_p99=_percentile(pauses, 99),
        stall_ms_max=max(pauses, default=None),
        swap_ms_p50=_percentile(took_ms, 50),
        swap_ms_p99=_percentile(took_ms, 99),
    )


def is_failed(request: Request) -> bool:
    """Detect an answer with another status than 200, without tokens, or without versions."""
    return request.status != 200 or not request.tokens or request.version_min is None or request.version_max is None


def is_misversioned(request: Request, lives: dict[int, list[Interval]]) -> bool:
    """Detect an answer older than requested, or with a version that was not live at any moment of the request.

    This includes an answer by an old version to a request that began after the next version was acknowledged.
    """
    if is_failed(request):
        return False
    low, high = request.version_min, request.version_max
    assert low is not None and high is not None
    if low > high or (request.at_least is not None and high < request.at_least):
        return True
    return not all(any(begin <= request.end and request.start <= end for begin, end in lives.get(v, [])) for v in (low, high))


def lifetimes(batches: Sequence[PostedBatch], first_version: int) -> dict[int, list[Interval]]:
    """Intervals in which each version may have been live: from its post to the answer of its successor.

    A batch that the service made in several versions, or together with refused edits, skips numbers; these may have been live
    while it was made.
    """
    lives: dict[int, list[Interval]] = {}
    version, since = first_version, -math.inf
    for batch in batches:
        if batch.version is None:
            continue
        lives.setdefault(version, []).append((since, batch.returned))
        for between in range(version + 1, batch.version):
            lives.setdefault(between, []).append((batch.posted, batch.returned))
        version, since = batch.version, batch.posted
    lives.setdefault(version, []).append((since, math.inf))
    return lives


def stalls_ms(request: Request, swaps: Sequence[Interval]) -> Iterator[float]:
    """Longest pause of a stream that overlaps each swap, in milliseconds, for swaps between two of its tokens.

    `swaps` are in order and do not overlap.
    """
    tokens = request.tokens
    if len(tokens) < 2:
        return
    first = bisect_right(swaps, tokens[0], key=lambda swap: swap[1])
    last = bisect_left(swaps, tokens[-1], key=lambda swap: swap[0])
    for begin, end in swaps[first:last]:
        touched = tokens[max(0, bisect_right(tokens, begin) - 1) : bisect_left(tokens, end) + 1]
        yield max(after - before for before, after in pairwise(touched)) * 1e3


@dataclass(frozen=True)
class GapFigures:
    """Milliseconds between two tokens of a stream, and tokens a second; None where there is no gap.

    `without` is the same engine in the phases without edits. `at_swap` are the gaps that overlap a swap.
    """

    tokens_per_s_with: float | None
    tokens_per_s_without: float | None
    gap_ms_p50_without: float | None
    gap_ms_p99_without: float | None
    gap_ms_p50_with: float | None
    gap_ms_p99_with: float | None
    gap_ms_p50_at_swap: float | None
    gap_ms_p99_at_swap: float | None
    num_gaps_at_swap: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def gap_figures(requests: Sequence[Request], swaps: Sequence[Interval], phases: Sequence[Phase]) -> GapFigures:
    """Compute the gaps between tokens inside the phases with edits and without; failed answers do not count.

    `swaps` do not overlap.
    """
    gaps = [gap for request in requests if not is_failed(request) for gap in pairwise(request.tokens)]
    by_phase: dict[bool, list[Interval]] = {True: [], False: []}
    for phase in phases:
        by_phase[phase.edits] += [(a, b) for a, b in gaps if phase.begin <= a and b <= phase.end]
    ordered = sorted(swaps)
    begins = [begin for begin, _ in ordered]
    swapped = [(a, b) for a, b in by_phase[True] if (at := bisect_right(begins, b)) and ordered[at - 1][1] >= a]
    with_edits, without, _ = paired_rates(requests, phases)
    ms = {name: [1e3 * (b - a) for a, b in of] for name, of in (("with", by_phase[True]), ("without", by_phase[False]))}
    ms["at_swap"] = [1e3 * (b - a) for a, b in swapped]
    figures = {f"gap_ms_p{percent}_{name}": _percentile(of, percent) for name, of in ms.items() for percent in (50, 99)}
    return GapFigures(with_edits or None, without or None, **figures, num_gaps_at_swap=len(swapped))


def paired_rates(requests: Sequence[Request], phases: Sequence[Phase]) -> tuple[float, float, list[float]]:
    """Tokens a second over all phases with edits, over all without, and the ratio of each pair.

    Phases without a partner and tokens of failed answers do not count.
    """
    times = np.sort([token for request in requests if not is_failed(request) for token in request.tokens])
    ordered = sorted(phases, key=lambda phase: phase.begin)
    num, seconds, ratios = {True: 0, False: 0}, {True: 0.0, False: 0.0}, []
    for pair in zip(ordered[::2], ordered[1::2], strict=False):
        if pair[0].edits == pair[1].edits:
            raise ValueError(f"the phases at {pair[0].begin:g} and {pair[1].begin:g} are no pair: one has edits, one has none")
        rates = {}
        for phase in pair:
            inside = int(np.searchsorted(times, phase.end) - np.searchsorted(times, phase.begin))
            num[phase.edits] += inside
            seconds[phase.edits] += phase.end - phase.begin
            rates[phase.edits] = inside / (phase.end - phase.begin)
        ratios += [rates[True] / rates[False]] if rates[False] else []
    with_edits, without = (num[edits] / seconds[edits] if seconds[edits] else 0.0 for edits in (True, False))
    return with_edits, without, ratios


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _check(
    requests: Sequence[Request], batches: Sequence[PostedBatch], swaps: Sequence[Interval], phases: Sequence[Phase]
) -> None:
    spans = [(request.start, *request.tokens, request.end) for request in requests]
    spans += [(batch.posted, batch.returned) for batch in batches] + list(swaps)
    for times in spans:
        if any(after < before for before, after in pairwise(times)):
            raise ValueError(f"times run backwards: {', '.join(f'{time:g}' for time in times[:8])}")
    if wrong := [phase for phase in phases if not phase.begin < phase.end]:
        raise ValueError(f"a phase ends after it begins, unlike the one at {wrong[0].begin:g}")
