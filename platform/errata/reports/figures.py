"""Figures of report pages: inline SVG that follows the page's light or dark theme, and a PNG of each."""

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
# Ten hues with a contrast of 3 to white. theme.css has their counterparts for a dark page, in the same order.
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

Drawn = Mapping[str, Sequence[Any]]  # matplotlib's artists by the name of their series


@dataclass(frozen=True)
class Picture:
    """A figure of a page: `name` is that of its PNG, `alt` describes it in words, and a `wide` one has a row of its own."""

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
    """Render what `draw` draws into matplotlib's axes; `size` is in inches.

    `draw` may return the artists of each series, a line and perhaps its band; the reader can then highlight a series on the
    page. The PNG gets a legend of its own, whereas the page has one legend for all figures of a section.
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
        "text.parse_math": False,  # names may contain dollar signs
    }


def _inline(svg: bytes, name: str, alt: str) -> Markup:
    """Return the `<svg>` element alone, without namespaces, with ids unique on the page and the theme's colours."""
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
    """Strip the namespace from a name."""
    return tag.rpartition("}")[2]


def _own(value: str, name: str) -> str:
    """Prefix references in an attribute's value with the figure's name, and replace colours by those of the theme."""
    value = re.sub(r"(^|url\()#(?=[A-Za-z]\w+(\)|$))", rf"\1#{name}-", value) if _refers(value) else value
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _THEME.get(found[0], found[0]), value)


def _refers(value: str) -> bool:
    return value.startswith(("#", "url(#"))


def logarithmic(axis: Any, span: float) -> None:
    """Make an axis logarithmic with plain tick labels; below a `span` (largest / smallest) of 100, 2 and 5 have ticks, too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 100 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
