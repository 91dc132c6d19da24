"""Figures of a run with an abusive key, from the records of the clients beside it: health, completions, edits, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, NamedTuple

import psutil

GONE_S = 60.0  # A health check or an edit that is refused, or gets no answer, counts as long as that.
BEFORE, AFTER = "none, before", "none, after"  # The parts of the run without abuse.


class ProcessBytes(NamedTuple):
    """Resident bytes of a replica's own process and of its children, which are the engine's."""

    own: int = 0
    children: int = 0

    def since(self, before: ProcessBytes) -> ProcessBytes:
        return ProcessBytes(self.own - before.own, self.children - before.children)


def process_bytes(process: psutil.Process) -> ProcessBytes:
    """Measure a process and its children."""
    children = 0
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            children += child.memory_info().rss
    return ProcessBytes(process.memory_info().rss, children)


@dataclass
class AbusePhase:
    """A part of the run: `abuse` names what the abusive key did, or is `BEFORE` or `AFTER`.

    `health_s` and `edit_s` are the seconds of each health check and of each waiting post of an edit, `completions` counts
    answered requests of the other clients, `failures` those that were not answered. `memory` is the growth of the replica's
    memory since the run began, several times a second; `codes` are the answers to the abusive key.
    """

    abuse: str
    seconds: float
    health_s: list[float] = field(default_factory=list)
    completions: int = 0
    failures: int = 0
    edit_s: list[float] = field(default_factory=list)
    memory: list[ProcessBytes] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Completions a second."""
        return self.completions / self.seconds


def percentile_99(values: Sequence[float]) -> float:
    """Return the 99th percentile, of few values the largest."""
    return max(values, default=GONE_S) if len(values) < 100 else quantiles(values, n=100)[98]


def row_of(phase: AbusePhase, quiet: AbusePhase) -> dict[str, Any]:
    """Return the figures of a phase, compared with one without abuse."""
    is_compared = bool(phase.edit_s and quiet.edit_s)
    return {
        "abuse": phase.abuse,
        "health_ms_p99": round(percentile_99(phase.health_s) * 1e3, 1),
        "completions_per_s": round(phase.rate, 2),
        "completion_ratio": round(phase.rate / quiet.rate, 3) if quiet.completions else None,
        "failures": phase.failures,
        "edit_s_median": round(median(phase.edit_s), 3) if phase.edit_s else None,
        "edit_delay_s": round(max(phase.edit_s) - median(quiet.edit_s), 3) if is_compared else None,
        "replica_mib": _mib(max((one.own for one in phase.memory), default=0)),
        "engine_mib": _mib(max((one.children for one in phase.memory), default=0)),
        "replica_mib_at_end": _mib(phase.memory[-1].own if phase.memory else 0),
        "codes": dict(sorted(phase.codes.items())),
    }


def _mib(num_bytes: int) -> float:
    return round(num_bytes / 2**20, 1)


def worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the worst of each figure over the rows with abuse; None where nothing was measured in one of them."""

    def of(name: str, choose: Any) -> Any:
        values = [row[name] for row in rows if row["abuse"] not in (BEFORE, AFTER)]
        return None if not values or None in values else choose(values)

    names = {"health_ms_p99": max, "completion_ratio": min, "edit_delay_s": max, "replica_mib": max, "engine_mib": max}
    after = next((row["replica_mib_at_end"] for row in rows if row["abuse"] == AFTER), None)
    return {name: of(name, choose) for name, choose in names.items()} | {"replica_mib_after": after}
