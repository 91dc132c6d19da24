"""Tables of a benchmark as Markdown, and its progress as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from errata.benchmark.results import BY_NAME, CheckpointScores, Measure
from errata.benchmark.summary import EditorSummary, SeedSummary, shown_measures


def markdown(summaries: Sequence[EditorSummary], note: str = "") -> str:
    """Write a table with a row for each editor.

    With several seeds a cell is the mean (smallest–largest), with one seed the value [its interval, if it has one].
    """
    measures = shown_measures(summaries)
    titles = " | ".join(measure.title for measure in measures)
    lines = [f"| editor | edits | seeds | {titles} |", "|---|" + "---:|" * (len(measures) + 2)]
    for one in summaries:
        cells = [_cell(measure, one.measures[measure.name]) for measure in measures]
        lines.append(f"| {one.editor} | {one.edits} | {len(one.seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (f"\n\n{note}" if note else "") + "\n"


def _cell(measure: Measure, summary: SeedSummary | None) -> str:
    if summary is None:
        return "–"
    one = as_text(measure, summary.mean)
    if summary.interval is not None:
        return f"{one} [{as_text(measure, summary.interval[0])}–{as_text(measure, summary.interval[1])}]"
    if summary.min == summary.max:
        return one
    return f"{one} ({as_text(measure, summary.min)}–{as_text(measure, summary.max)})"


def as_text(measure: Measure, value: float) -> str:
    """Format a value of a measure as a table shows it; bytes become MiB."""
    if not math.isfinite(value):
        return "∞"
    if measure.format == "bytes":
        return f"{value / 2**20:.1f}"
    if measure.format == "count":
        return f"{value:g}"
    return f"{value:.1f}" if measure.format in ("ms", "s", "edits", "tokens") else f"{value:.3f}"


def described(row: CheckpointScores) -> str:
    """Describe a checkpoint in one line, for the terminal."""
    names = ("efficacy", "generalisation", "locality", "harmonic_mean")
    known = [f"{BY_NAME[name].title} {value:.3f}" for name in names if (value := row[name]) is not None]
    time = [] if row["edit_ms"] is None else [f"{row['edit_ms']:.1f} ms per edit"]
    refused = [f"{row['rejected']} refused"] if row["rejected"] else []
    return f"{row.editor}, seed {row.seed}, {row.edits} edits: {', '.join([*known, *time, *refused])}"
