"""The commands `errata ledger push` and `pull`, copies of a ledger and its journal at a URI, and `verify`, its scrub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.console import errors_as_one_line, say

app = typer.Typer(help="Copy a ledger to a bucket or another disk, and back; check its files.", no_args_is_help=True)
Where = Annotated[str, typer.Argument(metavar="URI", help="file:///…, s3://…, gs://… or hdfs://…")]
Journal = Annotated[Path | None, typer.Option(help="The journal, if it is not DIRECTORY.journal, beside the ledger.")]
Folder = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Folder of the ledger.")]


@app.command()
def push(directory: Folder, where: Where, journal: Journal = None) -> None:
    """Copy the journal and the versions that a copy lacks, the live version last. The service may run."""
    from errata.ledger import LedgerConflict, LedgerDamaged, UnknownVersion
    from errata.ledger.remote import push as push_versions

    with errors_as_one_line(also=(LedgerConflict, LedgerDamaged, UnknownVersion)):
        num_new = push_versions(directory, where, journal)
    say(f"{num_new:,} versions were new; {where} is a copy of {directory}")


@app.command()
def pull(where: Where, directory: Folder, journal: Journal = None) -> None:
    """Copy journal and versions from a copy into a ledger, or into a new one, and check each. Stop its service first."""
    from errata.ledger import LedgerConflict, LedgerDamaged, UnknownVersion
    from errata.ledger.remote import pull as pull_versions

    with errors_as_one_line(also=(LedgerConflict, LedgerDamaged, UnknownVersion)):
        num_new = pull_versions(where, directory, journal)
    say(f"{num_new:,} versions were new; {directory} is the ledger of which {where} is a copy")


@app.command()
def verify(directory: Folder) -> None:
    """Compare every file of every version and snapshot with its digest. The service may run."""
    from errata.ledger.scrub import scrub

    with errors_as_one_line():
        found = [(name, faults) for name, faults in scrub(directory)]
    damaged = [(name, faults) for name, faults in found if faults]
    for name, faults in damaged:
        say(f"{name} is damaged: {'; '.join(faults)}")
    if damaged:
        say(f"{len(damaged):,} of {len(found):,} versions and snapshots of {directory} are damaged: see docs/versions.md")
        raise typer.Exit(1)
    say(f"{len(found):,} versions and snapshots of {directory} are whole")
