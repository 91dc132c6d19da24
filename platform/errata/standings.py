"""What a benchmark leaves behind, over editors and seeds: rows and answers as Parquet, report.json, table.md, curves.png."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from errata.measures.intervals import Interval
from errata.rows import Answer, Row, columns

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
    "token_accuracy_tf": "tokens (tf)",
    "likelihood_efficacy": "likelihood",
    "retention_ratio": "retained",
    "fluency": "fluency",
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
    """Of one number over the seeds; `interval` is the row's own where there is one seed: 95 %, over resampled edits."""

    mean: float
    min: float
    max: float
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> Spread | None:
        known = [value for row in rows if (value := getattr(row, name)) is not None]
        interval = rows[0].intervals.get(name) if len(rows) == 1 else None
        return cls(mean(known), min(known), max(known), interval) if known else None


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
        spreads = {name: Spread.of(name, own) for name in COLUMNS}
        found.append(Standing(editor, at, tuple(row.seed for row in own), spreads))
    return [standing for standing in found if standing.seeds]


def markdown(found: Sequence[Standing], note: str = "") -> str:
    """A table. With several seeds a cell is the mean (smallest–largest), with one the value [its interval, if it has one]."""
    lines = ["| editor | edits | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * (len(COLUMNS) + 2)]
    for one in found:
        cells = [_cell(name, one.spreads[name]) for name in COLUMNS]
        lines.append(f"| {one.editor} | {one.edits} | {len(one.seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (f"\n\n{note}" if note else "") + "\n"


def _cell(name: str, spread: Spread | None) -> str:
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


def described(row: Row) -> str:
    """A line for a person who waits."""
    shares = ("efficacy", "generalisation", "locality", "harmonic_mean")
    known = [f"{COLUMNS[name]} {getattr(row, name):.3f}" for name in shares if getattr(row, name) is not None]
    time = [] if row.edit_ms is None else [f"{row.edit_ms:.1f} ms per edit"]
    refused = [f"{row.rejected} refused"] if row.rejected else []
    return f"{row.editor}, seed {row.seed}, {row.edits} edits: {', '.join([*known, *time, *refused])}"


def write(
    rows: Sequence[Row], directory: str | Path, meta: Mapping[str, Any], note: str = "", answered: Sequence[Answer] = ()
) -> None:
    """The files; answers.parquet only with answers. `meta` is what report.json says beside the rows: command, seeds, hardware,
    settings by editor.

    JSON has no infinity: there it is null, and `not_finite` lists the rows and columns that it stands in.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    found = standings(rows)
    records = [row.to_json() for row in rows]
    pq.write_table(pa.Table.from_pylist(records, schema=_schema(Row)), directory / "rows.parquet")
    if answered:
        write_answers(answered, directory / "answers.parquet")
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
    """The rows of a rows.parquet, also of an older one that lacks the newer columns."""
    return [Row.from_json(record) for record in pq.read_table(path).to_pylist()]


def write_answers(answered: Sequence[Answer], path: str | Path) -> None:
    records = [dataclasses.asdict(answer) for answer in answered]
    pq.write_table(pa.Table.from_pylist(records, schema=_schema(Answer)), path)


def read_answers(path: str | Path) -> list[Answer]:
    """The answers of an answers.parquet."""
    return [Answer(**record) for record in pq.read_table(path).to_pylist()]


def _schema(record: type) -> pa.Schema:
    kinds = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in columns(record).items()])


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return None if _is_infinite(value) else value


def draw(rows: Sequence[Row], path: str | Path) -> None:
    """Four scores against the number of edits, as `curves` draws one, and whose line is whose."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
    for axes, name in zip(grid, DRAWN, strict=True):
        curves(axes, rows, name)
        axes.set(title=COLUMNS[name], ylim=(-0.03, 1.03))
    for axes in grid[2:]:
        axes.set_xlabel("edits so far")
    for axes in grid[::2]:
        axes.set_ylabel("share of free-running answers")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    figure.savefig(path, dpi=150)


def curves(axes: Any, rows: Sequence[Row], name: str) -> dict[str, list[Any]]:
    """Draw one column of the rows against the number of edits into matplotlib's `axes`; what was drawn of each editor.

    A line is the mean over the seeds. A band goes from the smallest to the largest of them, or, where the rows have bootstrap
    intervals, from the smallest low to the largest high. The first, the unedited model, is grey.
    """
    from matplotlib.ticker import NullLocator

    drawn: dict[str, list[Any]] = {}
    stops = sorted({row.edits for row in rows})
    for index, editor in enumerate(dict.fromkeys(row.editor for row in rows)):
        own = [row for row in rows if row.editor == editor and getattr(row, name) is not None]
        found = {stop: [row for row in own if row.edits == stop] for stop in sorted({row.edits for row in own})}
        line = [mean(getattr(row, name) for row in at) for at in found.values()]
        low = [min(_bounds(row, name)[0] for row in at) for at in found.values()]
        high = [max(_bounds(row, name)[1] for row in at) for at in found.values()]
        colour = "0.6" if index == 0 else f"C{(index - 1) % 10}"
        style = "--" if index == 0 else "-" if index <= 10 else ":"
        drawn[editor] = axes.plot(list(found), line, style, marker="o", markersize=3.5, color=colour, label=editor)
        drawn[editor].append(axes.fill_between(list(found), low, high, color=colour, alpha=0.15, linewidth=0))
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(stops, [str(stop) for stop in stops])
    axes.grid(alpha=0.3)
    return drawn


def _bounds(row: Row, name: str) -> Interval:
    """The ends of the row's own interval, or its value where it has none."""
    value = float(getattr(row, name))
    return row.intervals.get(name, (value, value))
