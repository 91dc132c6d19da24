"""Score curves over the number of edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from errata.benchmark.results import COLUMNS, CheckpointScores
from errata.evaluate.bootstrap import Interval

DRAWN = ("efficacy", "generalisation", "locality", "harmonic_mean")


def draw(rows: Sequence[CheckpointScores], path: str | Path) -> None:
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


def curves(axes: Any, rows: Sequence[CheckpointScores], name: str) -> dict[str, list[Any]]:
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


def _bounds(row: CheckpointScores, name: str) -> Interval:
    """The ends of the row's own interval, or its value where it has none."""
    value = float(getattr(row, name))
    return row.intervals.get(name, (value, value))
