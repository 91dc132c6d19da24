"""A figure as a page needs it: inline SVG in the page's own colours, light or dark, and a PNG to be sent around."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

INK, GRID, MUTED = "#1d2530", "#d7dce3", "#999999"
OK, WARN, BAD = "#1b7a3c", "#b45f06", "#c0303c"
# Ten hues with a contrast of 3 to white; page.css has the same ten for a dark page, in the same order.
PALETTE = ("#2460c4", "#c2570c", "#23833f", "#c22f3d", "#7b4fb5", "#86553a", "#c0458f", "#6d7410", "#0f7f8c", "#4f5d75")
_THEME = {
    INK: "var(--ink)",
    GRID: "var(--line)",
    MUTED: "var(--muted)",
    OK: "var(--ok)",
    WARN: "var(--warn)",
    BAD: "var(--bad)",
}
_THEME |= {colour: f"var(--s{index})" for index, colour in enumerate(PALETTE)}

Drawn = Mapping[str, Sequence[Any]]  # matplotlib's artists by the series that they belong to


@dataclass(frozen=True)
class Picture:
    """`name` is the PNG's, without its suffix; `alt` says what one would see; a `wide` one has a row of its own."""

    name: str
    svg: Markup
    png: bytes
    alt: str
    caption: str
    wide: bool


def picture(
    name: str,
    alt: str,
    draw: Callable[[Any], Drawn | None],
    caption: str = "",
    series: Sequence[str] = (),
    size: tuple[float, float] = (5.2, 3.2),
    wide: bool = False,
) -> Picture:
    """What `draw` makes of matplotlib's axes; `size` in inches.

    What `draw` returns by series, a line and perhaps its band, can be singled out in the page; in the PNG the lines are in a
    legend, which the page has for all figures together.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_settings()):
        figure = Figure(figsize=size, layout="constrained")
        drawn = draw(figure.subplots()) or {}
        for label, artists in drawn.items():
            for artist, kind in zip(artists, ("series", "band"), strict=False):
                artist.set_gid(f"{kind}-{series.index(label)}")
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True)
        if drawn:
            columns = min(4, len(drawn))
            figure.set_size_inches(size[0], size[1] + 0.2 * -(-len(drawn) // columns))
            figure.legend(
                [artists[0] for artists in drawn.values()],
                list(drawn),
                loc="outside lower center",
                ncols=columns,
                frameon=False,
            )
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150, facecolor="white")
    return Picture(name, _inline(svg.getvalue(), name, alt), png.getvalue(), alt, caption, wide)


def _settings() -> Any:
    from cycler import cycler

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inked, INK),
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titleweight": "bold",
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "font.size": 9,
        "grid.color": GRID,
        "legend.fontsize": 8,
        "svg.fonttype": "none",
        "svg.hashsalt": "errata",
        "text.parse_math": False,  # a name may have dollar signs
    }


def _inline(svg: bytes, name: str, alt: str) -> Markup:
    """The `<svg>` alone: no namespaces, no ids that another figure of the page has too, colours by the page's names."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _own(value, name) for key, value in element.attrib.items()}
        identity = element.attrib.pop("id", "")
        kind, _, index = identity.partition("-")
        if kind in ("series", "band"):
            element.attrib |= {"class": "series" if kind == "series" else "series band", "data-series": index}
        elif identity:
            element.set("id", f"{name}-{identity}")
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(tag: str) -> str:
    """A name without its namespace."""
    return tag.rpartition("}")[2]


def _own(value: str, name: str) -> str:
    """An attribute's value: references with the figure's name before them, colours by the page's names."""
    value = re.sub(r"(^|url\()#(?=[A-Za-z]\w+(\)|$))", rf"\1#{name}-", value) if _refers(value) else value
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _THEME.get(found[0], found[0]), value)


def _refers(value: str) -> bool:
    return value.startswith(("#", "url(#"))


def logarithmic(axis: Any, span: float) -> None:
    """Ticks as one writes them, 0.1, 1, 1000; where the largest value is not 100 times the smallest, 2 and 5 have one, too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 100 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
