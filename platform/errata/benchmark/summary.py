"""Summary of a benchmark: the measures of each editor at one checkpoint, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from errata.benchmark.results import IN_TABLES, CheckpointScores, Measure


@dataclass(frozen=True)
class SeedSummary:
    """Mean and range of one measure over seeds. With one seed, also its bootstrap interval at 95 %."""

    mean: float
    min: float
    max: float
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, name: str, rows: Sequence[CheckpointScores]) -> SeedSummary | None:
        """Summarise a measure over the rows that have it; None if none has."""
        known = [value for row in rows if (value := row[name]) is not None]
        interval = rows[0].intervals.get(name) if len(rows) == 1 else None
        return cls(mean(known), min(known), max(known), interval) if known else None


@dataclass(frozen=True)
class EditorSummary:
    """The measures of one editor after `edits` edits, over seeds and by name; None for what was not measured."""

    editor: str
    edits: int
    seeds: tuple[int, ...]
    measures: Mapping[str, SeedSummary | None]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `standings` in report.json."""
        found = asdict(self)
        absent = {measure.name for measure in IN_TABLES if measure.is_optional and self.measures[measure.name] is None}
        found["measures"] = {name: spread for name, spread in found["measures"].items() if name not in absent}
        return {name: found[name] for name in ("editor", "edits", "seeds")} | {"spreads": found["measures"]}


def summarise(rows: Sequence[CheckpointScores], edits: int | None = None) -> list[EditorSummary]:
    """Summarise each editor, in the order of the rows, after `edits` edits; with None, at its last checkpoint."""
    found = []
    for editor in dict.fromkeys(row.editor for row in rows):
        own = [row for row in rows if row.editor == editor]
        at = max(row.edits for row in own) if edits is None else edits
        own = [row for row in own if row.edits == at]
        measures = {measure.name: SeedSummary.of(measure.name, own) for measure in IN_TABLES}
        found.append(EditorSummary(editor, at, tuple(row.seed for row in own), measures))
    return [summary for summary in found if summary.seeds]


def shown_measures(summaries: Sequence[EditorSummary]) -> list[Measure]:
    """List the measures that a table has columns for, without the optional ones that no editor has."""
    return [m for m in IN_TABLES if not m.is_optional or any(one.measures[m.name] is not None for one in summaries)]
