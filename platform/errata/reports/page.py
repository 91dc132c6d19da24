"""The elements of a report page, and its rendering as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, field

from errata.reports.figures import Picture


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, a small `note` below it, bold if `strong`, coloured by `tone` (ok, warn, bad or none)."""

    text: str
    note: str = ""
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table, whose first cell is its header; `series` is the number of the series that it belongs to."""

    cells: Sequence[Cell | str]
    series: int | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first `num_text` columns are text and the others numbers; `folded` is a title that opens it."""

    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    num_text: int = 1
    note: str = ""
    folded: str = ""
    is_open: bool = False


@dataclass(frozen=True)
class LegendEntry:
    """The name, colour and dash of a curve; `colour` is a variable of theme.css."""

    name: str
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Section:
    """A section of a page; `has_legend`: its figures show the page's series; `can_be_searched`: the rows of its tables."""

    key: str
    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    has_legend: bool = False
    can_be_searched: bool = False


@dataclass(frozen=True)
class Page:
    """A page; `facts` are (name, value) pairs at its top."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    series: Sequence[LegendEntry] = field(default=())

    @property
    def pictures(self) -> list[Picture]:
        """The figures of all sections."""
        return [picture for section in self.sections for picture in section.pictures]


def capped(lines: Sequence[Line], most: int, what: str) -> tuple[Sequence[Line], str]:
    """Return the first `most` rows, and a note with the number of rows left out."""
    left = len(lines) - most
    return lines[:most], f"and {left:,} more {what} that are not shown" if left > 0 else ""


def html(page: Page) -> str:
    """Render the page with everything inline; data is escaped, and only page.js may run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("errata.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = importlib.resources.files("errata.reports")
    theme, style, script = (files.joinpath(name).read_text() for name in ("theme.css", "page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(page=page, style=theme + style, script=script, digest=digest)
