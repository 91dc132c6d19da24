"""What a benchmark leaves behind: rows.parquet, report.json, table.md and curves.png, over all editors and seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from errata.benchmark import Row

COLUMNS = {
    "efficacy": "efficacy",
    "generalisation": "generalisation",
    "locality": "locality",
    "locality_gold": "locality (gold)",
    "retention": "retention",
    "portability": "portability",
    "harmonic_mean": "harmonic mean",
    "ppl_ratio": "perplexity / base",
    "efficacy_tf": "efficacy (tf)",
    "generalisation_tf": "generalisation (tf)",
    "locality_tf": "locality (tf)",
    "norm_growth": "norm / base",
    "edit_ms": "ms per edit",
    "precompute_s": "precompute s",
    "train_s": "train s",
    "peak_bytes": "peak MiB",
    "rejected": "refused",
}
DRAWN = ("efficacy", "generalisation", "locality", "harmonic_mean")


@dataclass(frozen=True)
class Spread:
    """Of one number over the seeds."""

    mean: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return cls(mean(known), min(known), max(known)) if known else None


@dataclass(frozen=True)
class Standing:
    """An editor after `edits` edits, its numbers over the seeds; None where none was measured."""

    editor: str
    edits: int
    seeds: tuple[int, ...]
    spreads: Mapping[str, Spread | None]


def standings(rows: Sequence[Row], edits: int | None = None) -> list[Standing]:
    """Each editor, in the order of the rows, at `edits`; without it, at its last checkpoint."""
    found = []
    for editor in dict.fromkeys(row.editor for row in rows):
        own = [row for row in rows if row.editor == editor]
        at = max(row.edits for row in own) if edits is None else edits
        own = [row for row in own if row.edits == at]
        spreads = {name: Spread.of(getattr(row, name) for row in own) for name in COLUMNS}
        found.append(Standing(editor, at, tuple(row.seed for row in own), spreads))
    return [standing for standing in found if standing.seeds]


def markdown(found: Sequence[Standing], note: str = "") -> str:
    """A table; with several seeds a cell is the mean and, in brackets, the smallest and the largest."""
    lines = ["| editor | edits | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * (len(COLUMNS) + 2)]
    for one in found:
        cells = [_cell(name, one.spreads[name]) for name in COLUMNS]
        lines.append(f"| {one.editor} | {one.edits} | {len(one.seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (f"\n\n{note}" if note else "") + "\n"


def _cell(name: str, spread: Spread | None) -> str:
    if spread is None:
        return "–"
    one = _number(name, spread.mean)
    if spread.min == spread.max:
        return one
    return f"{one} ({_number(name, spread.min)}–{_number(name, spread.max)})"


def _number(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "∞"
    if name == "peak_bytes":
        return f"{value / 2**20:.1f}"
    if name == "rejected":
        return f"{value:g}"
    return f"{value:.1f}" if name in ("edit_ms", "precompute_s", "train_s") else f"{value:.3f}"


def described(row: Row) -> str:
    """A line for a person who waits."""
    shares = ("efficacy", "generalisation", "locality", "harmonic_mean")
    known = [f"{COLUMNS[name]} {getattr(row, name):.3f}" for name in shares if getattr(row, name) is not None]
    time = [] if row.edit_ms is None else [f"{row.edit_ms:.1f} ms per edit"]
    refused = [f"{row.rejected} refused"] if row.rejected else []
    return f"{row.editor}, seed {row.seed}, {row.edits} edits: {', '.join([*known, *time, *refused])}"


def write(rows: Sequence[Row], directory: str | Path, meta: Mapping[str, Any], note: str = "") -> None:
    """The four files. `meta` is what report.json says beside the rows: command, seeds, hardware, settings by editor.

    JSON has no infinity: there it is null, and `not_finite` lists the rows and columns that it stands in.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    found = standings(rows)
    records = [dataclasses.asdict(row) for row in rows]
    pq.write_table(pa.Table.from_pylist(records, schema=_schema()), directory / "rows.parquet")
    report = {
        **meta,
        "note": note,
        "standings": [dataclasses.asdict(one) for one in found],
        "rows": records,
        "not_finite": [[i, name] for i, record in enumerate(records) for name, v in record.items() if _is_infinite(v)],
    }
    (directory / "report.json").write_text(json.dumps(_without_infinity(report), indent=1, allow_nan=False) + "\n")
    (directory / "table.md").write_text(markdown(found, note))
    draw(rows, directory / "curves.png")


def read(path: str | Path) -> list[Row]:
    """The rows of a rows.parquet."""
    return [Row(**record) for record in pq.read_table(path).to_pylist()]


def _schema() -> pa.Schema:
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    hints = typing.get_type_hints(Row)
    return pa.schema(
        [(f.name, kinds[(typing.get_args(hints[f.name]) or (hints[f.name],))[0]]) for f in dataclasses.fields(Row)]
    )


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return None if _is_infinite(value) else value


def draw(rows: Sequence[Row], path: str | Path) -> None:
    """Scores against the number of edits: a line for the mean over the seeds, a band from the smallest to the largest."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
    editors = list(dict.fromkeys(row.editor for row in rows))
    stops = sorted({row.edits for row in rows})
    for axes, name in zip(grid, DRAWN, strict=True):
        for index, editor in enumerate(editors):
            points = [(s.edits, s.spreads[name]) for stop in stops for s in standings(rows, stop) if s.editor == editor]
            known = [(edits, spread) for edits, spread in points if spread is not None]
            x = [edits for edits, _ in known]
            colour = "0.6" if index == 0 else f"C{(index - 1) % 10}"
            line = "--" if index == 0 else "-" if index <= 10 else ":"
            axes.plot(x, [s.mean for _, s in known], line, marker="o", markersize=3.5, color=colour, label=editor)
            axes.fill_between(x, [s.min for _, s in known], [s.max for _, s in known], color=colour, alpha=0.15, linewidth=0)
        axes.set(title=COLUMNS[name], ylim=(-0.03, 1.03), xscale="log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(stops, [str(stop) for stop in stops])
        axes.grid(alpha=0.3)
    for axes in grid[2:]:
        axes.set_xlabel("edits so far")
    for axes in grid[::2]:
        axes.set_ylabel("share of free-running answers")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    figure.savefig(path, dpi=150)
