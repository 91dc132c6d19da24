"""The command `errata model fetch`: the default model, or a GGUF file, as a checkpoint that can be edited."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli.console import errors_as_one_line, say

app = typer.Typer(no_args_is_help=True, help="Models: the default one, and GGUF files.")


@app.callback()
def model() -> None:
    """Group the commands about models; with a single one, typer would leave its name out."""


@app.command()
def fetch(
    gguf: Annotated[str, typer.Argument(help="A GGUF file; without it, the default model, SmolLM2-135M-Instruct.")] = "",
) -> None:
    """Make a checkpoint under $ERRATA_HOME/models and print its folder; `errata serve` does so by itself."""
    with errors_as_one_line(also=(ValueError,)):
        from errata.local.models import resolved
        from errata.model.gguf import converted
        from errata.testbed.smollm2 import NAME

        say(str(resolved(NAME) if gguf in ("", NAME) else converted(gguf)))
