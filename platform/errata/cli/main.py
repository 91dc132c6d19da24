"""`errata`: the commands of the files beside this one, put together."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from errata.cli import bench, edits, keys, ledger, serve, versions
from errata.cli.report import report
from errata.cli.score import score


class DataGroup(TyperGroup):
    """`errata data`, imported when it is asked for: pyarrow takes longer than `errata --help` should."""

    def list_commands(self, ctx: Any) -> list[str]:
        return _data().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _data().get_command(ctx, cmd_name)


def _data() -> TyperGroup:
    group = typer.main.get_command(import_module("errata.cli.data").app)
    assert isinstance(group, TyperGroup)
    return group


app = typer.Typer(help="Keep a served language model correct.", no_args_is_help=True, pretty_exceptions_show_locals=False)
for commands in (serve, edits, versions):
    app.add_typer(commands.app)
looks = typer.Typer()  # commands that were added to `app` itself would stand before all others
for command in (score, report):
    looks.command()(command)
app.add_typer(looks)
app.add_typer(bench.app)
app.add_typer(typer.Typer(cls=DataGroup, no_args_is_help=True), name="data", help="Look at files of edits, and convert them.")
app.add_typer(keys.app, name="keys")
app.add_typer(ledger.app, name="ledger")

if __name__ == "__main__":
    app()
