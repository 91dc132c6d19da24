"""A page: what it is made of, and its one HTML file, which needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, field

from errata.reports.figures import Picture


@dataclass(frozen=True)
class Cell:
    """`note` stands small under the text; the best of a column is `strong`; `tone` is ok, warn, bad or nothing."""

    text: str
    note: str = ""
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table; its first cell is the row's header. `series` is the number of the series that it tells about."""

    cells: Sequence[Cell | str]
    series: int | None = None


@dataclass(frozen=True)
class Table:
    """The first `num_text` columns are text, the others numbers. A `folded` title hides it until it is clicked."""

    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    num_text: int = 1
    note: str = ""
    folded: str = ""
    is_open: bool = False


@dataclass(frozen=True)
class Series:
    """What a curve is called and how it is drawn; `colour` is one of page.css."""

    name: str
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Section:
    """`legend`: its figures are of the page's series. `can_be_searched`: of the rows of its tables."""

    key: str
    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    has_legend: bool = False
    can_be_searched: bool = False


@dataclass(frozen=True)
class Page:
    """`facts` are (what, how much) at the top."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    series: Sequence[Series] = field(default=())

    @property
    def pictures(self) -> list[Picture]:
        return [picture for section in self.sections for picture in section.pictures]


def capped(lines: Sequence[Line], most: int, what: str) -> tuple[Sequence[Line], str]:
    """The first `most` rows, and a note that says how many more there are."""
    left = len(lines) - most
    return lines[:most], f"and {left:,} more {what} that are not shown" if left > 0 else ""


def html(page: Page) -> str:
    """Everything inside; what comes from data is escaped, and no other script than page.js may run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("errata.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = importlib.resources.files("errata.reports")
    style, script = (files.joinpath(name).read_text() for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(page=page, style=style, script=script, digest=digest)
