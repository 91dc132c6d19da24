"""Output of every benchmark: a table on the terminal and `$ERRATA_HOME/NAME/report.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from errata.durable import write_text
from errata.home import home
from errata.local.terminal import console

TABLE_WIDTH = 160  # of a table over a pipe, where a console would cut words


def show(title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Print a table whose columns are the fields of its rows; None prints as a dash."""
    table = Table()
    for name in rows[0]:
        table.add_column(name.replace("_", "\n"), justify="right")
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    screen = console()
    width = None if screen.is_terminal else TABLE_WIDTH
    screen.print(f"\n[bold]{title}[/bold]", table, *([note] if note else []), sep="\n", highlight=False, width=width)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name.endswith("bytes") or "_bytes_" in name:
        return f"{value / 2**20:,.1f} MiB"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_report(name: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """Write `{"name", "rows", **more}`; `more` holds the command, the seed, the hardware, and further tables."""
    path = home() / name / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"name": name, **more, "rows": list(rows)}, indent=1) + "\n")
    console().print(f"written to {path}", soft_wrap=True)
    return path
