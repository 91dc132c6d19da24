"""`errata`: the client's commands. Thin: each one calls the client, or starts the local stack."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from errata import data_commands
from errata.client import Client, ErrataError
from errata.report_commands import report
from errata.score_commands import score
from errata.stack import Stack

app = typer.Typer(help="Keep a served language model correct.", no_args_is_help=True, pretty_exceptions_show_locals=False)
app.add_typer(data_commands.app, name="data")
app.command()(report)
app.command()(score)
console = Console()
Url = Annotated[str, typer.Option(help="Address of the service.", envvar="ERRATA_URL")]
DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Folder of the model; without it, the one that the artifact was made on.")] = "",
    artifact: Annotated[str, typer.Option(help="Folder of a trained policy or of key moments; without it, the newest.")] = "",
    editor: Annotated[str, typer.Option(help="Name of the editor; docs/editors.md has them.")] = "RLEdit",
    preset: Annotated[str, typer.Option(help="Settings of an editor that has presets: llama3_8b, testbed, ...")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="field=value of the editor; may be repeated.")] = None,
    guard: Annotated[list[str] | None, typer.Option(help="field=value of the guard, such as perplexity.refuse=2.")] = None,
    probes: Annotated[str, typer.Option(help="File of what no edit may change; without it, the one beside the model.")] = "",
    ledger: Annotated[str, typer.Option(help="Folder of the versions; made if it is not there.")] = "",
    port: Annotated[int, typer.Option(help="HTTP port on 127.0.0.1.")] = 8000,
) -> None:
    """Start Ray, MLflow and the Serve application on this machine; Ctrl-C stops them."""
    from errata.editors import needs

    home = Path(os.environ.get("ERRATA_HOME") or Path.home() / ".cache" / "errata").absolute()
    try:
        kept = needs(editor)
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong)) from None
    artifact = artifact or (_newest(home / kept) if kept else "")
    if not model and not artifact:
        raise typer.BadParameter(f"{editor} has no artifact that names a model: name its folder (--model)")
    model = model or str(home / "testbed" / _made_on(Path(artifact)))
    given = {"artifact": artifact, "preset": preset, "settings": ";".join(settings or [])}
    given |= {"guard": ";".join(guard or []), "probes": probes}
    with Stack(home / "serve", http_port=port) as stack:
        console.print("starting MLflow, Ray and vLLM (about a minute) …")
        stack.start_mlflow()
        stack.start_ray()
        stack.wait_mlflow()
        stack.start_serve(
            model=model,
            editor=editor,
            ledger=ledger or home / "serve" / f"ledger-{_fit(editor)}",
            mlflow=stack.mlflow_url,
            **{name: value for name, value in given.items() if value},
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
        how = "run `make demo` first" if folder.name == "hypernets" else "run jobs/moments.py first"
        raise typer.BadParameter(f"there is no artifact in {folder} yet: {how}, or name one (--artifact)")
    return str(found[-1])


def _made_on(artifact: Path) -> str:
    """The name of the testbed's model that a policy was trained on, or moments measured."""
    trained, measured = artifact / "artifact.json", artifact / "moments.json"
    if trained.exists():
        return str(json.loads(trained.read_text())["record"]["model"])
    if measured.exists():
        return str(json.loads(measured.read_text())["model"])
    raise typer.BadParameter(f"{artifact} is no artifact of an editor: it has neither artifact.json nor moments.json")


def _fit(name: str) -> str:
    """For a folder's name."""
    return name.lower().replace("/", "-of-").replace("+", "-plus")


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


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="Hugging Face folder or name of the model.")],
    edits: Annotated[Path, typer.Option(help="File of edits with their probes; docs/data.md has the formats.")],
    editor: Annotated[list[str], typer.Option(help="Folder of a trained one, or NAME[:PRESET][=ARTIFACT]; may be repeated.")],
    text: Annotated[Path, typer.Option(help="File of plain sentences, a line each, for the perplexity.")],
    out: Annotated[Path, typer.Option(help="Folder for rows.parquet, answers.parquet, report.json, table.md, curves.png.")],
    batch_size: Annotated[int, typer.Option(help="Edits a batch.", min=1)] = 10,
    checkpoints: Annotated[str, typer.Option(help="Numbers of edits after which all so far are scored.")] = "",
    limit: Annotated[int, typer.Option(help="Take that many edits of the file; 0 for all.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Shuffles the edits; 0 leaves them in their order.")] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", help="EDITOR.field=value; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Where the model is: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Play one stream of edits with several editors and score all edits so far at checkpoints; needs no service."""
    from errata.bench_files import contenders_of, course_of, model_of
    from errata.benchmark import run_all
    from errata.hardware import hardware
    from errata.rows import Answer, Row
    from errata.standings import described, markdown, standings, write

    try:
        contenders = contenders_of(editor, settings or [], device)
        course = course_of(edits, text, batch_size, checkpoints, limit, seed)
        machine = hardware()
        out.mkdir(parents=True, exist_ok=True)  # what cannot be written to is seen before hours of work
        language_model = model_of(model, dtype, device)
        by_editor = {contender.name: contender.settings for contender in contenders}
        meta = {"command": shlex.join(["errata", *sys.argv[1:]]), "seeds": [seed], "hardware": machine, "settings": by_editor}
        rows, answered = list[Row](), list[Answer]()

        def note(row: Row) -> None:
            rows.append(row)
            console.print(described(row), soft_wrap=True)

        def save(said: list[Answer]) -> None:  # after every editor, so that nothing is lost with a later one
            answered.extend(said)
            write(rows, out, meta, answered=answered)

        run_all(language_model, contenders, course, note, save)
    except (ValueError, OSError) as wrong:
        console.print(str(wrong), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(markdown(standings(rows)), soft_wrap=True)
    console.print(f"written to {out}")


@app.command()
def ability(
    model: Annotated[Path, typer.Option(help="Folder of a checkpoint; `errata export` writes one of a version.")],
    tasks: Annotated[str, typer.Option(help="Names with commas between them: of files in the task folder, or lm-eval's own.")],
    out: Annotated[Path, typer.Option(help="Folder for ability.json.")],
    backend: Annotated[str, typer.Option(help="What runs the model: hf (transformers) or vllm.")] = "hf",
    task_folder: Annotated[Path | None, typer.Option(help="Folder of task files; without it, the three small ones.")] = None,
    limit: Annotated[int, typer.Option(help="Take that many records of each task; 0 for all.")] = 0,
    shots: Annotated[int | None, typer.Option(help="Examples before each question; without it, as the task says.")] = None,
    device: Annotated[str, typer.Option(help="Where the model is with the backend hf: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Score a checkpoint's general ability with lm-eval: GLUE and MMLU, or small tasks of their kinds; needs no service."""
    from errata.ability import TASKS, measure, save

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = measure(model, names, backend, task_folder or TASKS, limit or None, shots, device, dtype)
    except (ValueError, OSError) as wrong:
        console.print(str(wrong), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    table = Table("task", "score", "value", "standard error", "records")
    for name, result in found["tasks"].items():
        for metric in (key for key in result if f"{key}_stderr" in result):
            value, error = result[metric], result[f"{metric}_stderr"]
            table.add_row(name, metric, f"{value:.3f}", f"{error:.3f}", str(result["num_records"]))
    console.print(table)
    console.print(f"written to {save(found, out)}")


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
