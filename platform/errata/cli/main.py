"""The application `errata`: the commands of all files of this package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from errata.cli import bench, edits, keys, ledger, model, proposals, serve, versions
from errata.cli.report import report
from errata.cli.score import score


class DataGroup(TyperGroup):
    """The group `errata data`, imported on first use, because importing pyarrow would slow down `errata --help`."""

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
evaluation = typer.Typer()  # a group of their own, because commands of `app` itself would be listed before all others
for command in (score, report):
    evaluation.command()(command)
app.add_typer(evaluation)
app.add_typer(bench.app)
app.add_typer(typer.Typer(cls=DataGroup, no_args_is_help=True), name="data", help="Check and convert files of edits.")
app.add_typer(proposals.app, name="proposals")
app.add_typer(model.app, name="model")
app.add_typer(keys.app, name="keys")
app.add_typer(ledger.app, name="ledger")

if __name__ == "__main__":
    app()
