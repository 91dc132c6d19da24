"""`errata`: the client's commands. Thin: each one calls the client, or starts the local stack."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from errata.client import Client, ErrataError
from errata.stack import Stack

app = typer.Typer(help="Keep a served language model correct.", no_args_is_help=True, pretty_exceptions_show_locals=False)
console = Console()
Url = Annotated[str, typer.Option(help="Address of the service.", envvar="ERRATA_URL")]
DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Folder of the model; without it, the one the policy was trained on.")] = "",
    artifact: Annotated[str, typer.Option(help="Folder of the editor's trained policy; without it, the newest.")] = "",
    ledger: Annotated[str, typer.Option(help="Folder of the versions; made if it is not there.")] = "",
    port: Annotated[int, typer.Option(help="HTTP port on 127.0.0.1.")] = 8000,
) -> None:
    """Start Ray, MLflow and the Serve application on this machine; Ctrl-C stops them."""
    home = Path(os.environ.get("ERRATA_HOME") or Path.home() / ".cache" / "errata").absolute()
    artifact = artifact or _newest(home / "hypernets")
    model = model or str(home / "testbed" / json.loads((Path(artifact) / "artifact.json").read_text())["record"]["model"])
    with Stack(home / "serve", http_port=port) as stack:
        console.print("starting MLflow, Ray and vLLM (about a minute) …")
        stack.start_mlflow()
        stack.start_ray()
        stack.wait_mlflow()
        stack.start_serve(
            model=model, artifact=artifact, ledger=ledger or home / "serve" / "ledger", editor="RLEdit", mlflow=stack.mlflow_url
        )
        stack.wait_serve()
        console.print(f"[bold]ready:[/bold] {stack.url} (MLflow: {stack.mlflow_url}); Ctrl-C stops all of it")
        stopped = threading.Event()
        for ask in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ask, lambda *_: stopped.set())
        stopped.wait()
        console.print("stopping …")


def _newest(folder: Path) -> str:
    found = sorted(folder.glob("*/"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise typer.BadParameter(f"there is no trained policy in {folder} yet: run `make demo` first, or name one")
    return str(found[-1])


@app.command()
def edit(
    prompt: str,
    target: str,
    subject: Annotated[str | None, typer.Option(help="The words of the prompt that the fact is about.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Correct one answer and wait until the served model gives it."""
    body = {"prompt": prompt, "target": target} | ({"subject": subject} if subject else {})
    answer = _called(lambda: Client(url).edit([body]))
    console.print(f"applied in version {answer['version']}")


@app.command()
def ask(prompts: list[str], max_tokens: int = 8, url: Url = DEFAULT_URL) -> None:
    """What the served model answers, and by which version."""
    answer = _called(lambda: Client(url).complete(prompts, max_tokens))
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        console.print(f"{prompt} [bold]{choice['text'].strip()}[/bold]")
    console.print(f"version {answer['errata']['version_max']}", style="dim")


@app.command()
def versions(url: Url = DEFAULT_URL) -> None:
    """The chain of versions; the live one is marked."""
    answer = _called(lambda: Client(url).versions())
    table = Table("", "version", "parent", "edits", "bytes", "made")
    for version in answer["versions"]:
        live = "●" if version["version"] == answer["head"] else ""
        parent = "" if version["parent"] is None else str(version["parent"])
        table.add_row(
            live, str(version["version"]), parent, str(version["num_edits"]), f"{version['num_bytes']:,}", version["created"]
        )
    console.print(table)


@app.command()
def rollback(version: int, url: Url = DEFAULT_URL) -> None:
    """Serve an earlier (or later) version again; nothing is deleted."""
    _called(lambda: Client(url).rollback(version))
    console.print(f"version {version} is live")


@app.command()
def status(url: Url = DEFAULT_URL) -> None:
    """Replicas, their versions, the queue and the last swaps."""
    console.print_json(data=_called(lambda: Client(url).status()))


@app.command()
def export(version: int, directory: Path, ledger: Annotated[Path, typer.Option(help="Folder of the versions.")]) -> None:
    """Write a version as a plain Hugging Face checkpoint."""
    from errata.ledger import Ledger, UnknownVersion

    try:
        Ledger.open(ledger).export(version, directory)
    except (UnknownVersion, ValueError, FileNotFoundError) as wrong:
        console.print(f"[red]{wrong}[/red]")
        raise typer.Exit(1) from None
    console.print(f"version {version} is in {directory}")


def _called(call):  # type: ignore[no-untyped-def]
    import httpx

    try:
        return call()
    except ErrataError as refused:
        console.print(f"[red]{refused}[/red]")
    except httpx.HTTPError as failed:
        console.print(f"[red]the service does not answer: {failed}. Is it running? `make serve` starts it.[/red]")
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
