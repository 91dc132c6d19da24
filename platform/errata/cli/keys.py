"""`errata keys`, commands of cli.py: make keys for the service, list them, take them away."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from errata.access_keys import Keys, add_key, lifetime_of, remove_key

app = typer.Typer(help="Keys for the service: who may ask, edit, administer.", no_args_is_help=True)
console = Console()
File = Annotated[Path, typer.Option("--file", help="File of keys; `errata serve --keys` takes it.", envvar="ERRATA_KEYS")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is; the ledger says it beside each edit.")],
    file: File,
    role: Annotated[str, typer.Option(help="read, edit (also corrects) or admin (also goes back and reverts).")] = "read",
    expires: Annotated[str, typer.Option(help="How long it holds: 12h, 30d, 8w; without it, until it is removed.")] = "",
    rate: Annotated[int | None, typer.Option(help="Requests a minute, at each replica; without it, no limit.")] = None,
) -> None:
    """Make a key and show it, this once: the file holds only its hash. A running service knows it within a second."""
    try:
        lifetime = lifetime_of(expires) if expires else None
        bearer = add_key(file, name, role, lifetime, rate)
    except (ValueError, OSError) as wrong:
        _end(wrong)
    typer.echo(bearer)  # alone on standard output, for `ERRATA_KEY=$(errata keys add …)`
    typer.echo(f"the key of {name} ({role}); it is not shown again. Clients read it from ERRATA_KEY.", err=True)


@app.command("list")
def list_keys(file: File) -> None:
    """Names, roles and dates; the keys themselves are nowhere."""
    try:
        keys = Keys.load(file).entries
    except ValueError as wrong:
        _end(wrong)
    now, table = datetime.now(UTC), Table("name", "role", "made", "expires", "requests a minute")
    for key in keys:
        expires = "never" if key.expires is None else _shown(key.expires)
        expires = f"{expires} (expired)" if key.is_expired(now) else expires
        rate = "" if key.rate is None else f"{key.rate:,}"
        table.add_row(key.name, key.role, _shown(key.created), expires, rate)
    console.print(table)


@app.command()
def remove(name: str, file: File) -> None:
    """Take a key away. A running service refuses it within a second."""
    try:
        remove_key(file, name)
    except (ValueError, OSError) as wrong:
        _end(wrong)
    console.print(f"the key of {name} is removed", markup=False)


def _shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _end(wrong: Exception) -> NoReturn:
    Console(stderr=True).print(str(wrong), style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1) from None
