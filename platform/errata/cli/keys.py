"""The commands `errata keys add`, `list` and `remove`: keys of the service."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from errata.cli.console import console, errors_as_one_line, say

app = typer.Typer(help="Make, list and remove keys of the service.", no_args_is_help=True)
File = Annotated[Path, typer.Option("--file", help="File of keys; `errata serve --keys` takes it.", envvar="ERRATA_KEYS")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Owner of the key; the ledger stores the name with each edit.")],
    file: File,
    role: Annotated[
        str,
        typer.Option(
            help="read, propose (also proposes edits), edit (also corrects and reviews) or admin (also rolls back and reverts)."
        ),
    ] = "read",
    expires: Annotated[str, typer.Option(help="Lifetime: 12h, 30d, 8w; without it, until it is removed.")] = "",
    rate: Annotated[int | None, typer.Option(help="Requests a minute, at each replica; without it, no limit.")] = None,
) -> None:
    """Make a key and show it once: the file holds only its hash. A running service accepts it within a second."""
    from errata.access_keys import add_key, lifetime_of

    with errors_as_one_line():
        lifetime = lifetime_of(expires) if expires else None
        bearer = add_key(file, name, role, lifetime, rate)
    typer.echo(bearer)  # alone on standard output, for `ERRATA_KEY=$(errata keys add …)`
    typer.echo(f"the key of {name} ({role}); it is not shown again. Clients read it from ERRATA_KEY.", err=True)


@app.command("list")
def list_keys(file: File) -> None:
    """List names, roles and dates; the keys themselves are not stored."""
    from errata.access_keys import Keys

    with errors_as_one_line():
        keys = Keys.load(file).entries
    now, table = datetime.now(UTC), Table("name", "role", "made", "expires", "requests a minute")
    for key in keys:
        expires = "never" if key.expires is None else _shown(key.expires)
        expires = f"{expires} (expired)" if key.is_expired(now) else expires
        rate = "" if key.rate is None else f"{key.rate:,}"
        table.add_row(key.name, key.role, _shown(key.created), expires, rate)
    console.print(table)


@app.command()
def remove(name: str, file: File) -> None:
    """Remove a key. A running service refuses it within a second."""
    from errata.access_keys import remove_key

    with errors_as_one_line():
        remove_key(file, name)
    say(f"the key of {name} is removed")


def _shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
