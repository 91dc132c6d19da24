"""`errata report`, a command of cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def report(
    path: Annotated[Path, typer.Argument(help="Folder of a ledger, or the one that a benchmark wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for index.html and the PNGs; without it, `report` inside PATH.")
    ] = None,
) -> None:
    """Write one HTML page about a ledger or a benchmark, whole in itself, and its figures as PNGs; needs no service."""
    from errata.reports.write import write_report

    try:
        page = write_report(path, out)
    except (ValueError, OSError) as wrong:
        console.print(str(wrong), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(f"written to {page}", markup=False, soft_wrap=True)
