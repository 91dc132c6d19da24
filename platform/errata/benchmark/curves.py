"""Curves of the measures over the number of edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from errata.benchmark.results import BY_NAME, CheckpointScores
from errata.durable import replaced
from errata.evaluate.bootstrap import Interval

DRAWN = ("efficacy", "generalisation", "locality", "harmonic_mean")


def draw(rows: Sequence[CheckpointScores], path: str | Path) -> None:
    """Draw curves.png: four scores over the number of edits, with a common legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
    for axes, name in zip(grid, DRAWN, strict=True):
        curves(axes, rows, name)
        axes.set(title=BY_NAME[name].title, ylim=(-0.03, 1.03))
    for axes in grid[2:]:
        axes.set_xlabel("edits so far")
    for axes in grid[::2]:
        axes.set_ylabel("share of free-running answers")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    with replaced(Path(path)) as file:
        figure.savefig(file, format="png", dpi=150)


def curves(axes: Any, rows: Sequence[CheckpointScores], name: str) -> dict[str, list[Any]]:
    """Draw one measure over the number of edits into matplotlib's `axes`; return the line and the band of each editor.

    A line is the mean over seeds. A band spans the seeds' values, or, where the rows have bootstrap intervals, the smallest
    low to the largest high. The first editor, the unedited model, is grey.
    """
    from matplotlib.ticker import NullLocator

    drawn: dict[str, list[Any]] = {}
    stops = sorted({row.edits for row in rows})
    for index, editor in enumerate(dict.fromkeys(row.editor for row in rows)):
        own = [row for row in rows if row.editor == editor and row[name] is not None]
        found = {stop: [row for row in own if row.edits == stop] for stop in sorted({row.edits for row in own})}
        line = [mean(_value(row, name) for row in at) for at in found.values()]
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


def _value(row: CheckpointScores, name: str) -> float:
    value = row[name]
    assert value is not None  # the caller leaves such rows out
    return float(value)


def _bounds(row: CheckpointScores, name: str) -> Interval:
    """Return the bootstrap interval of the row, or its value twice if it has none."""
    return row.intervals.get(name, (_value(row, name),) * 2)
