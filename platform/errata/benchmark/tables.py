"""Tables of a benchmark as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from errata.benchmark.results import COLUMNS, CheckpointScores
from errata.benchmark.summary import EditorSummary, SeedSummary


def markdown(found: Sequence[EditorSummary], note: str = "") -> str:
    """A table. With several seeds a cell is the mean (smallest–largest), with one the value [its interval, if it has one]."""
    lines = ["| editor | edits | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * (len(COLUMNS) + 2)]
    for one in found:
        cells = [_cell(name, one.spreads[name]) for name in COLUMNS]
        lines.append(f"| {one.editor} | {one.edits} | {len(one.seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (f"\n\n{note}" if note else "") + "\n"


def _cell(name: str, spread: SeedSummary | None) -> str:
    if spread is None:
        return "–"
    one = as_text(name, spread.mean)
    if spread.interval is not None:
        return f"{one} [{as_text(name, spread.interval[0])}–{as_text(name, spread.interval[1])}]"
    if spread.min == spread.max:
        return one
    return f"{one} ({as_text(name, spread.min)}–{as_text(name, spread.max)})"


def as_text(name: str, value: float) -> str:
    """A number of the column `name`, as a table shows it."""
    if not math.isfinite(value):
        return "∞"
    if name == "peak_bytes":
        return f"{value / 2**20:.1f}"
    if name == "rejected":
        return f"{value:g}"
    return f"{value:.1f}" if name in ("edit_ms", "precompute_s", "train_s") else f"{value:.3f}"


def described(row: CheckpointScores) -> str:
    """A line for a person who waits."""
    shares = ("efficacy", "generalisation", "locality", "harmonic_mean")
    known = [f"{COLUMNS[name]} {getattr(row, name):.3f}" for name in shares if getattr(row, name) is not None]
    time = [] if row.edit_ms is None else [f"{row.edit_ms:.1f} ms per edit"]
    refused = [f"{row.rejected} refused"] if row.rejected else []
    return f"{row.editor}, seed {row.seed}, {row.edits} edits: {', '.join([*known, *time, *refused])}"
