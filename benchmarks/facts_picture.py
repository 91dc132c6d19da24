"""Picture of the comparison on the default model: what an editor reaches, against what it costs and what else it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from errata.durable import replaced
from errata.editors import EDITORS
from jobs.demo_answers import FORMS

# Of each panel: the column, the title below it, and the width around 0 in which a logarithmic axis is linear.
PANELS = (
    ("edit_s", "seconds to make one correction", 0.001),
    ("added_ms", "milliseconds that an answer to a corrected question takes more", 10.0),
    ("changed", "share of unrelated answers that change in any word", None),
)
COLOURS = {"weights": "C3", "memory": "C0", "": "0.4"}
NAMES = {"weights": "in the weights", "memory": "in a memory", "": "for comparison"}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw scores.png: a point for each editor, the mean over its seeds. Higher is better, further left is cheaper."""
    from matplotlib.figure import Figure

    points = points_of(rows)
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    for axes, (column, title, linear) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
        there = [one for one in points if one[column] is not None]
        for kind in dict.fromkeys(one["kind"] for one in there):
            own = [one for one in there if one["kind"] == kind]
            axes.scatter([o[column] for o in own], [o["right"] for o in own], color=COLOURS[kind], label=NAMES[kind])
        for place, one in enumerate(sorted(there, key=lambda one: (one["right"], one[column]))):
            offset = (6, 4 if place % 2 else -10)  # Neighbours in height have their names above and below.
            axes.annotate(one["editor"], (one[column], one["right"]), xytext=offset, textcoords="offset points", fontsize=8)
        if linear is not None:
            axes.set_xscale("symlog", linthresh=linear)
        axes.set(xlabel=title, ylim=(-0.05, 1.08))
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("corrections answered right\n(mean of four ways of asking)")
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    with replaced(path) as file:
        figure.savefig(file, format="png", dpi=130)


def points_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the rows of each editor over its seeds: what it reaches, and the columns of the panels."""
    found = []
    for name in dict.fromkeys(row["editor"] for row in rows):
        own = [row for row in rows if row["editor"] == name]
        kind = EDITORS.get(name)
        right = [fmean(row[form] for form in FORMS if row[form] is not None) for row in own]
        changed = [1 - row["agreement"] for row in own if row["agreement"] is not None]
        costs = {column: [row[column] for row in own if row[column] is not None] for column in ("edit_s", "added_ms")}
        means = {column: fmean(values) if values else None for column, values in {**costs, "changed": changed}.items()}
        found.append({"editor": name, "kind": kind.writes if kind else "", "right": fmean(right), **means})
    return found
