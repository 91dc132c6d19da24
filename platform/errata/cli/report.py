"""The command `errata report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.console import errors_as_one_line, say


def report(
    path: Annotated[Path, typer.Argument(help="Folder of a ledger, or of a benchmark's results.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for index.html and the PNGs; without it, `report` inside PATH.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a ledger or a benchmark, and its figures as PNGs; needs no service."""
    from errata.ledger import LedgerDamaged, UnknownVersion
    from errata.reports.write import write_report

    with errors_as_one_line(also=(LedgerDamaged, UnknownVersion)):
        page = write_report(path, out)
    say(f"written to {page}")
