"""Figures of the report page of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from errata.benchmark.curves import curves
from errata.benchmark.results import BY_NAME, CheckpointScores
from errata.benchmark.summary import EditorSummary
from errata.reports.benchmark_answers import Pair
from errata.reports.figures import GRID, INK, MUTED, PALETTE, Drawn, Picture, logarithmic, picture
from errata.reports.page import LegendEntry

MANY = 6  # above this number of editors their bands overlap too much and become fainter


def series_of(editors: Sequence[str]) -> list[LegendEntry]:
    """Return the colours and dashes that `curves` uses; the first editor, the unedited model, is grey."""
    named = [
        (f"var(--s{index % len(PALETTE)})", "solid" if index < len(PALETTE) else "dotted") for index in range(len(editors))
    ]
    return [LegendEntry(name, *style) for name, style in zip(editors, [("var(--muted)", "dashed"), *named], strict=False)]


def curve_picture(rows: Sequence[CheckpointScores], name: str, title: str, editors: Sequence[str]) -> Picture | None:
    """Draw a measure over the number of edits; None if no row has it."""
    if all(row[name] is None for row in rows):
        return None

    def draw(axes: Any) -> Drawn:
        drawn = curves(axes, rows, name)
        for _, band in drawn.values() if len(drawn) > MANY else ():
            band.set_alpha(0.6 / len(drawn))
        axes.set(title=title, xlabel="edits so far")
        if BY_NAME[name].format == "share":
            axes.set_ylim(-0.03, 1.03)
        elif _spans(rows, name) > 5:
            logarithmic(axes.yaxis, _spans(rows, name))
        return drawn

    return picture(name, _alt(rows, name, title), draw, series=editors)


def _spans(rows: Sequence[CheckpointScores], name: str) -> float:
    """Return the ratio of the largest finite value to the smallest above 0."""
    values = [v for row in rows if (v := row[name]) is not None and math.isfinite(v) and v > 0]
    return max(values, default=1.0) / min(values, default=1.0)


def _alt(rows: Sequence[CheckpointScores], name: str, title: str) -> str:
    last = max(row.edits for row in rows)
    found = [(value, row.editor) for row in rows if row.edits == last and (value := row[name]) is not None]
    edited = [one for one in found if one[1] != rows[0].editor]
    if not edited:
        return f"{title.capitalize()} over the edits."
    (low, least), (high, most) = min(edited), max(edited)
    count = len({editor for _, editor in edited})
    return (
        f"{title.capitalize()} over the edits, {count} editors; after {last} from {low:.3g} ({least}) to {high:.3g} ({most})."
    )


def trade_picture(summaries: Sequence[EditorSummary], editors: Sequence[str]) -> Picture | None:
    """Draw the time of an edit against the harmonic mean at the last checkpoint; None if no editor was timed."""
    timed = []
    for one in summaries:
        time, score = one.measures["edit_ms"], one.measures["harmonic_mean"]
        if time is not None and score is not None and time.mean > 0:
            timed.append((one.editor, time.mean, score.mean))
    if not timed:
        return None

    def draw(axes: Any) -> None:
        times = [x for _, x, _ in timed]
        logarithmic(axes.xaxis, max(times) / min(times))
        for editor, x, y in timed:
            place = editors.index(editor) - 1
            marker = "o" if place < len(PALETTE) else "s"
            (dot,) = axes.plot([x], [y], marker, color=PALETTE[place % len(PALETTE)], markersize=7)
            dot.set_gid(f"series-{place + 1}")
        axes.set(xlabel="ms per edit", ylabel="harmonic mean", ylim=(-0.03, 1.06), xlim=(min(times) / 1.3, max(times) * 1.9))
        axes.grid(alpha=0.6)
        _label(axes, timed, editors)

    best = max(timed, key=lambda one: one[2])
    alt = f"Milliseconds per edit and harmonic mean of {len(timed)} editors; "
    alt += f"the best one, {best[0]}, takes {best[1]:.3g} ms and scores {best[2]:.3f}."
    return picture("time", alt, draw, "Faster editors are further left, better ones further up.", size=(9, 4.6), wide=True)


def _label(axes: Any, timed: Sequence[tuple[str, float, float]], editors: Sequence[str]) -> None:
    """Write names beside the dots, each at the first of several places where it covers no other name or dot."""
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.draw_without_rendering()
    dots = [axes.transData.transform((x, y)) for _, x, y in timed]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    places = [(sign * 7, 11 * step, "left" if sign > 0 else "right") for step in (0, 1, -1, 2, -2, 3, -3) for sign in (1, -1)]
    for editor, x, y in timed:
        for dx, dy, side in places:
            text = axes.annotate(
                editor,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8,
                gid=f"series-{editors.index(editor)}",
            )
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
        else:
            axes.annotate(editor, (x, y), (7, 0), textcoords="offset points", va="center", fontsize=8)


def pair_picture(found: Sequence[Pair], kind: str) -> Picture | None:
    """Draw a bar for the first editor and each other one, divided by which of the two is right."""
    leader = found[0].first if found else ""
    own = [pair for pair in found if pair.first == leader]
    if not own:
        return None
    parts = {
        "both are right": ([p.both for p in own], GRID),
        f"only {leader}": ([p.only_first for p in own], PALETTE[0]),
        "only the other": ([p.only_second for p in own], PALETTE[1]),
        "neither": ([p.neither for p in own], MUTED),
    }

    def draw(axes: Any) -> None:
        begin = [0] * len(own)
        for label, (values, colour) in parts.items():
            axes.barh(
                [p.second for p in own], values, left=begin, color=colour, edgecolor=INK, linewidth=0.6, label=label, height=0.7
            )
            begin = [b + v for b, v in zip(begin, values, strict=True)]
        axes.invert_yaxis()
        axes.set(xlabel="questions", xlim=(0, max(begin)))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)

    closest = min(own, key=lambda p: abs(p.only_first - p.only_second))
    alt = (
        f"{leader} compared with {len(own)} editors, {kind}; the closest is {closest.second}: both right {closest.both}, "
        f"only {leader} {closest.only_first}, only {closest.second} {closest.only_second}, neither {closest.neither}."
    )
    return picture(f"pairs-{kind}", alt, draw, size=(9, 1.2 + 0.28 * len(own)), wide=True)
