"""`errata ledger`, commands of cli.py: copies of a ledger, at a URI and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.console import errors_as_one_line, say

app = typer.Typer(help="Copies of a ledger: to a bucket or another disk, and back.", no_args_is_help=True)
Where = Annotated[str, typer.Argument(metavar="URI", help="file:///…, s3://…, gs://… or hdfs://…")]
Folder = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Folder of the versions.")]


@app.command()
def push(directory: Folder, where: Where) -> None:
    """Bring a copy up to a ledger, which may be in use: what is missing there, the live version last."""
    from errata.ledger.remote import push as bring

    with errors_as_one_line():
        num_new = bring(directory, where)
    say(f"{num_new:,} versions were new; {where} is a copy of {directory}")


@app.command()
def pull(where: Where, directory: Folder) -> None:
    """Bring a ledger, or a new one, up to a copy. Stop the service that uses it first; each version is checked."""
    from errata.ledger.remote import pull as bring

    with errors_as_one_line():
        num_new = bring(where, directory)
    say(f"{num_new:,} versions were new; {directory} is the ledger that {where} is a copy of")
