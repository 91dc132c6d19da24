"""Output of every benchmark: a table on the terminal and `$ERRATA_HOME/NAME/report.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from errata.home import home

# A console over a pipe would wrap tables to 80 columns and cut words.
console = Console(width=160 if not sys.stdout.isatty() else None)


def show(title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Print a table whose columns are the fields of its rows; None prints as a dash."""
    table = Table()
    for name in rows[0]:
        table.add_column(name.replace("_", "\n"), justify="right")
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    console.print(f"\n[bold]{title}[/bold]", table, *([note] if note else []), sep="\n", highlight=False)


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
    path.write_text(json.dumps({"name": name, **more, "rows": list(rows)}, indent=1) + "\n")
    console.print(f"written to {path}")
    return path
