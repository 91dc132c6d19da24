"""What a benchmark leaves behind, over editors and seeds: rows and answers as Parquet, report.json, table.md, curves.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from errata.benchmark.results import COLUMNS, CheckpointScores


@dataclass(frozen=True)
class SeedSummary:
    """Of one number over the seeds; `interval` is the row's own where there is one seed: 95 %, over resampled edits."""

    mean: float
    min: float
    max: float
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, name: str, rows: Sequence[CheckpointScores]) -> SeedSummary | None:
        known = [value for row in rows if (value := getattr(row, name)) is not None]
        interval = rows[0].intervals.get(name) if len(rows) == 1 else None
        return cls(mean(known), min(known), max(known), interval) if known else None


@dataclass(frozen=True)
class EditorSummary:
    """An editor after `edits` edits, its numbers over the seeds; None where none was measured."""

    editor: str
    edits: int
    seeds: tuple[int, ...]
    spreads: Mapping[str, SeedSummary | None]


def summarise(rows: Sequence[CheckpointScores], edits: int | None = None) -> list[EditorSummary]:
    """Each editor, in the order of the rows, at `edits`; without it, at its last checkpoint."""
    found = []
    for editor in dict.fromkeys(row.editor for row in rows):
        own = [row for row in rows if row.editor == editor]
        at = max(row.edits for row in own) if edits is None else edits
        own = [row for row in own if row.edits == at]
        spreads = {name: SeedSummary.of(name, own) for name in COLUMNS}
        found.append(EditorSummary(editor, at, tuple(row.seed for row in own), spreads))
    return [standing for standing in found if standing.seeds]
