"""Figures of a run with an abusive key, from the records of the clients beside it: health, completions, edits, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

GONE_S = 60.0  # A health check without an answer counts as long as that.


@dataclass
class AbusePhase:
    """A part of the run: `abuse` names what the abusive key did, empty for the part without it.

    `health_s` and `edit_s` are the seconds of each health check and of each waiting post of an edit, `completions` counts
    answered requests of the other clients, `failures` those that were not answered. `replica_bytes` is the growth of the
    replica's memory since the run began, `codes` are the answers to the abusive key.
    """

    abuse: str
    seconds: float
    health_s: list[float] = field(default_factory=list)
    completions: int = 0
    failures: int = 0
    edit_s: list[float] = field(default_factory=list)
    replica_bytes: int = 0
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Completions a second."""
        return self.completions / self.seconds


def percentile_99(values: Sequence[float]) -> float:
    """Return the 99th percentile, of few values the largest."""
    return max(values, default=GONE_S) if len(values) < 100 else quantiles(values, n=100)[98]


def row_of(phase: AbusePhase, quiet: AbusePhase) -> dict[str, Any]:
    """Return the figures of a phase, compared with the one without abuse."""
    return {
        "abuse": phase.abuse or "none",
        "health_ms_p99": round(percentile_99(phase.health_s) * 1e3, 1),
        "completions_per_s": round(phase.rate, 2),
        "completion_ratio": round(phase.rate / quiet.rate, 3) if quiet.completions else None,
        "failures": phase.failures,
        "edit_delay_s": round(max(phase.edit_s), 3) if phase.edit_s else None,
        "replica_mib": round(phase.replica_bytes / 2**20, 1),
        "codes": dict(sorted(phase.codes.items())),
    }


def worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the worst of each figure over the rows with abuse; None where nothing was measured in one of them."""

    def of(name: str, choose: Any) -> Any:
        values = [row[name] for row in rows if row["abuse"] != "none"]
        return None if not values or None in values else choose(values)

    names = {"health_ms_p99": max, "completion_ratio": min, "edit_delay_s": max, "replica_mib": max}
    return {name: of(name, choose) for name, choose in names.items()}
