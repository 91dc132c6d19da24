"""Figures of the report page of a ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean
from typing import Any

from errata.guard.limits import Limit
from errata.reports.figures import BAD, INK, MUTED, OK, PALETTE, WARN, Drawn, Picture, logarithmic, picture
from errata.reports.ledger_history import History, Move, Point, number

MOST_POINTS = 80
MOST_MOVES = 12
Group = Sequence[Point]
Limits = Sequence[tuple[float, Limit]]  # in order, each with the number of edits since which it applied


def grouped(points: Sequence[Point], most: int = MOST_POINTS) -> list[Group]:
    """Divide the versions into at most `most` groups of consecutive ones, all of one size except the last."""
    size = max(1, -(-len(points) // most))
    return [points[i : i + size] for i in range(0, len(points), size)]


@cache
def wilson(right: int, asked: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, 1927)."""
    from scipy.stats import binomtest

    found = binomtest(right, asked).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def score_picture(history: History, name: str, title: str) -> Picture | None:
    """Draw a score over the number of edits; None if no version has it. Efficacy has Wilson's interval as a band."""
    groups = [[p for p in group if p.share(name) is not None] for group in grouped(history.main)]
    groups = [group for group in groups if group]
    branches = [(p.edits, p.share(name)) for p in history.points if not p.is_main and p.share(name) is not None]
    if not groups and not branches:
        return None
    x = [group[-1].edits for group in groups]
    y = [_pooled(group, name) for group in groups]

    def draw(axes: Any) -> None:
        axes.plot(x, y, color=PALETTE[0], marker="o", markersize=3.5)
        if name == "efficacy" and groups:
            low, high = zip(*(_interval(group, share) for group, share in zip(groups, y, strict=True)), strict=True)
            axes.fill_between(x, low, high, color=PALETTE[0], alpha=0.18, linewidth=0)
        _draw_branches(axes, branches)
        axes.set(title=title, ylim=(-0.03, 1.03), xlabel="edits so far")
        axes.grid(alpha=0.6)

    ends = f" from {y[0]:.3f} after {x[0]} edits to {y[-1]:.3f} after {x[-1]}; lowest {min(y):.3f}" if y else ""
    return picture(name, f"{title.capitalize()} over the edits{ends}.", draw)


def _pooled(group: Group, name: str) -> float:
    """Return the mean over the edits of the group."""
    weights = [max(1, len(point.version.edits)) for point in group]
    return fmean([point.share(name) or 0.0 for point in group], weights)


def _interval(group: Group, share: float) -> tuple[float, float]:
    asked = sum(max(1, len(point.version.edits)) for point in group)
    return wilson(round(share * asked), asked)


def _draw_branches(axes: Any, points: Sequence[tuple[int, float | None]]) -> None:
    """Draw versions of abandoned branches as hollow points without a line."""
    axes.plot([x for x, _ in points], [y for _, y in points], "o", color=MUTED, markerfacecolor="none", markersize=4)


def limit_picture(history: History, name: str, title: str, limits: Limits) -> Picture | None:
    """Draw a guarded measure with its limits: the worst value of each group, and refused updates; None if never measured."""
    groups = [[v for p in group if (v := p.share(name)) is not None] for group in grouped(history.main)]
    found = [(g[-1].edits, max(v)) for g, v in zip(grouped(history.main), groups, strict=True) if v]
    refused = [
        (history.edits_at(event.version), value)
        for event in history.events
        if event.outcome == "refused" and (value := number(event.scores, name)) is not None
    ]
    branches = [(p.edits, p.share(name)) for p in history.points if not p.is_main and p.share(name) is not None]
    if not found and not refused:
        return None
    largest = max(value for _, value in [*found, *refused])

    def draw(axes: Any) -> None:
        axes.plot([x for x, _ in found], [y for _, y in found], color=PALETTE[0], marker="o", markersize=3.5)
        axes.plot([x for x, _ in refused], [y for _, y in refused], "x", color=BAD, markersize=6, markeredgewidth=1.6)
        _draw_branches(axes, branches)
        _draw_limits(axes, limits)
        if largest > 4 * limits[-1][1].refuse:
            logarithmic(axes.yaxis, largest)
        axes.set(title=title, xlabel="edits so far")
        axes.margins(y=0.12)
        axes.grid(alpha=0.6)

    worst = f", at most {max(y for _, y in found):.3g}" if found else ""
    what = f"{len(refused)} refused updates are crosses" if refused else "no refused update was measured"
    alt = f"{title.capitalize()} of the versions over the edits{worst}; {what}. "
    return picture(name, alt + _in_words(limits), draw)


def _in_words(limits: Limits) -> str:
    limit = limits[-1][1]
    warns, refuses = (f"above {bound:g}" if math.isfinite(bound) else "never" for bound in (limit.warn, limit.refuse))
    when = "At the end, the" if len(limits) > 1 else "The"
    return f"{when} guard warns {warns} and refuses {refuses}."


def _draw_limits(axes: Any, limits: Limits) -> None:
    """Draw each limit over the edits to which it applied, the last one with its value; call this after drawing the data."""
    left, right = axes.get_xlim()
    begins = [max(left, begin) for begin, _ in limits]
    for begin, end, (_, limit) in zip(begins, [*begins[1:], right], limits, strict=True):
        for bound, colour, word in ((limit.warn, WARN, "warns"), (limit.refuse, BAD, "refuses")):
            if not math.isfinite(bound) or (word == "warns" and limit.warn == limit.refuse):
                continue
            axes.hlines(bound, begin, end, color=colour, linestyle="--", linewidth=1.2)
            if end == right:
                place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "bottom"}
                axes.annotate(f"{word}: {bound:g}", (1, bound), (0, 2), color=colour, **place)
    axes.set_xlim(left, right)


def module_picture(history: History, modules: Sequence[str], field: str, title: str, limits: Limits = ()) -> Picture | None:
    """Draw a norm of each matrix over the number of edits, with the limits if a value comes near them.

    The value is that of the last version of each group. None if no version has it.
    """
    read = _norms if field == "norms" else _of_card(field)
    ends = [group[-1] for group in grouped(history.main)]
    found = {m: [(p.edits, v) for p in ends if (v := read(p, m)) is not None] for m in modules}
    found = {module: values for module, values in found.items() if values}
    if not found:
        return None

    def draw(axes: Any) -> Drawn:
        drawn = {}
        for module, values in found.items():
            style = module_style(modules.index(module))
            x, y = zip(*values, strict=True)
            drawn[module] = axes.plot(x, y, color=style[0], linestyle=style[1], marker="o", markersize=3, label=module)
        if any(value > limit.refuse / 3 for _, limit in limits for values in found.values() for _, value in values):
            _draw_limits(axes, limits)
        axes.set(title=title, xlabel="edits so far")
        axes.grid(alpha=0.6)
        return drawn

    last = {module: values[-1][1] for module, values in found.items()}
    most = max(last, key=lambda module: last[module])
    alt = f"{title.capitalize()} of {len(found)} matrices over the edits; {most} ends highest, at {last[most]:.3g}."
    return picture(field, alt, draw, series=modules)


def module_style(index: int) -> tuple[str, str]:
    """Return the colour and the line style of the matrix with this number."""
    return PALETTE[index % len(PALETTE)], "-" if index < len(PALETTE) else ":"


def _of_card(field: str) -> Callable[[Point, str], float | None]:
    return lambda point, module: number(point.version.scorecard.get(field) or {}, module)


def _norms(point: Point, module: str) -> float | None:
    return number(point.version.norms, module)


def strip_picture(history: History) -> Picture:
    """Draw one mark for each verdict of the guard, in the order of time."""
    rows = {"published": (OK, "o"), "warned": (WARN, "^"), "refused": (BAD, "x")}
    places = {outcome: [i for i, event in enumerate(history.events, 1) if event.outcome == outcome] for outcome in rows}

    def draw(axes: Any) -> None:
        for y, (outcome, (colour, marker)) in enumerate(rows.items()):
            x = places[outcome]
            axes.scatter(x, [-y] * len(x), s=34, color=colour, marker=marker, alpha=0.8, rasterized=len(x) > 1000)
        axes.set_yticks([0, -1, -2], [f"{outcome} ({len(places[outcome])})" for outcome in rows])
        axes.set(ylim=(-2.6, 0.6), xlabel="updates in order of time")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", alpha=0.6)

    counts = ", ".join(f"{len(found)} {outcome}" for outcome, found in places.items())
    return picture(
        "guard", f"The guard's verdicts on {len(history.events)} updates: {counts}.", draw, size=(10, 1.9), wide=True
    )


def chain_picture(history: History) -> Picture:
    """Draw the tree of versions from left to right, with a lane for each branch, and the newest moves of the head below."""
    from matplotlib.collections import LineCollection

    lane, moves = _lanes(history), list(enumerate(history.moves, 1))[-MOST_MOVES:]
    lowest = max(lane.values())

    def draw(axes: Any) -> None:
        edges = [(point.version.parent or 0, point.version.number) for point in history.points]
        lines = [[(parent, -lane[parent]), (child, -lane[child])] for parent, child in edges]
        colours = [INK if point.is_main else MUTED for point in history.points]
        axes.add_collection(LineCollection(lines, colors=colours, zorder=1, rasterized=len(lines) > 1000))
        main = {0, *(point.version.number for point in history.main)}
        for is_main, colour in ((True, INK), (False, MUTED)):
            shown = [n for n in lane if (n in main) == is_main]
            size = 8 if len(lane) > MOST_POINTS else 36
            axes.scatter(shown, [-lane[n] for n in shown], s=size, color=colour, zorder=2, rasterized=len(shown) > 1000)
        place = (history.head, -lane[history.head])
        axes.scatter(*place, s=170, facecolor="none", edgecolor=PALETTE[0], linewidth=2, zorder=3)
        axes.annotate("head", place, (0, 12), textcoords="offset points", ha="center", color=PALETTE[0])
        for row, (number_of, move) in enumerate(moves):
            _arrow(axes, move, number_of, -lowest - 0.8 - 0.6 * row)
        axes.set(xlabel="version", yticks=[], ylim=(-lowest - 0.8 - 0.6 * len(moves), 0.9))
        axes.spines["left"].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)

    moved = "".join(f" Move {number_of}: from {move.before} to {move.version}." for number_of, move in moves)
    alt = f"{len(history.points)} versions after the unedited one, in {lowest + 1} lanes; the head is {history.head}.{moved}"
    return picture("chain", alt, draw, size=(10, 1.5 + 0.35 * lowest + 0.25 * len(moves)), wide=True)


def _arrow(axes: Any, move: Move, number_of: int, y: float) -> None:
    style = {"arrowstyle": "-|>", "color": BAD, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (move.version, y), (move.before, y), arrowprops=style)
    place = ((move.before + move.version) / 2, y)
    axes.annotate(f"{number_of}", place, (0, 2), textcoords="offset points", ha="center", color=BAD)


def _lanes(history: History) -> dict[int, int]:
    """Assign lanes to versions: 0 to the newest and its ancestors, the first free lane to every other branch."""
    lane, ends = {0: 0}, list[int]()
    for point in history.points:
        one, parent = point.version.number, point.version.parent or 0
        if point.is_main:
            lane[one] = 0
            continue
        own = lane[parent]
        if own == 0 or ends[own - 1] != parent:
            own = next((i for i, end in enumerate(ends, 1) if end < parent), len(ends) + 1)
        ends[own - 1 : own] = [one]
        lane[one] = own
    return lane
