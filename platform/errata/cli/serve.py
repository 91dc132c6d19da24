"""`errata serve`, `stop` and `status`, commands of cli.py."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from errata.cli.console import DEFAULT_URL, AsJson, Url, connect, console, end, errors_as_one_line, print_json, say, shown
from errata.home import home

app = typer.Typer()
WATCHED = "ray"  # ends with the machine's part of the cluster, and the service with it
NUM_SWAPS = 5


class Pause(StrEnum):
    KEEP = "keep"
    WAIT = "wait"


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Folder of the model; without it, the one that the artifact was made on.")] = "",
    artifact: Annotated[str, typer.Option(help="Folder of a trained policy or of key moments; without it, the newest.")] = "",
    editor: Annotated[str, typer.Option(help="Name of the editor; docs/editors.md has them.")] = "RLEdit",
    preset: Annotated[str, typer.Option(help="A paper's settings for the model, such as llama3_8b: docs/plans.md.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="field=value of the editor; may be repeated.")] = None,
    guard: Annotated[list[str] | None, typer.Option(help="field=value of the guard, such as perplexity.refuse=2.")] = None,
    probes: Annotated[str, typer.Option(help="File of what no edit may change; without it, the one beside the model.")] = "",
    ledger: Annotated[str, typer.Option(help="Folder of the versions; made if it is not there.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.", min=1, max=65535)] = 8000,
    keys: Annotated[str, typer.Option(help="File of access keys; `errata keys add` makes it.", envvar="ERRATA_KEYS")] = "",
    replicas: Annotated[int, typer.Option(help="Generators, each with an engine of its own.", min=1)] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of a replica; 0.5 shares one with the editor (--device cuda).", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where edits are made: cpu, cuda, or cuda:0,cuda:1 for a large model.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the weights, such as bfloat16.")] = "float32",
    max_queue: Annotated[int | None, typer.Option(help="Edits that may wait; more are answered 429.", min=1)] = None,
    pause: Annotated[Pause, typer.Option(help="At a swap, requests in flight keep going or are waited for.")] = Pause.KEEP,
) -> None:
    """Start Ray, MLflow and the Serve application on this machine; Ctrl-C or `errata stop` stops them."""
    from errata.access_keys import check_binding
    from errata.editors import needs

    root = home()
    try:
        check_binding(host, keys or None)
        kept = needs(editor, preset)
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong)) from None
    artifact = artifact or (_newest(root / kept) if kept else "")
    if not model and not artifact:
        raise typer.BadParameter(f"{editor} has no artifact that names a model: name its folder (--model)")
    arguments: dict[str, Any] = {
        "model": model or str(root / "testbed" / _made_on(Path(artifact))),
        "editor": editor,
        "ledger": ledger or root / "serve" / f"ledger-{_fit(editor)}",
        "mlflow_name": f"errata-{_fit(editor)}",  # a registered model mirrors one ledger
        "replicas": replicas,
        "gpus": gpus,
        "device": device,
        "dtype": dtype,
        "pause": pause.value,
    }
    given = {"artifact": artifact, "preset": preset, "settings": ";".join(settings or []), "guard": ";".join(guard or [])}
    given |= {"probes": probes, "keys": str(Path(keys).absolute()) if keys else "", "max_queue": str(max_queue or "")}
    _run(root / "serve", host, port, arguments | {name: value for name, value in given.items() if value})


def _run(folder: Path, host: str, port: int, arguments: Mapping[str, Any]) -> None:
    """Until it is asked to stop, or Ray ends. What was started is stopped, also if starting fails halfway."""
    from errata.local.pidfile import AlreadyRunning, recorded_service
    from errata.local.services import LocalServices, ServiceFailed

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stack = LocalServices(folder, http_port=port, http_host=host)
    try:
        with recorded_service(folder, stack.url), stack:
            try:
                console.print("starting MLflow, Ray and vLLM (about a minute) …")
                stack.start_mlflow()
                stack.start_ray()
                stack.wait_mlflow()
                stack.start_serve(mlflow=stack.mlflow_url, **arguments)
                stack.wait_serve()
                say(f"ready: {stack.url} (MLflow: {stack.mlflow_url}); Ctrl-C or `errata stop` stops all of it")
                while not stack.has_ended(WATCHED):
                    time.sleep(0.5)
                raise ServiceFailed(f"{WATCHED} has ended:\n{stack.log_end(WATCHED)}")
            except KeyboardInterrupt:
                say("stopping …")
            finally:  # asked twice, it would leave processes behind
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except (AlreadyRunning, ServiceFailed) as failed:
        typer.secho(str(failed), fg="red", err=True)
        raise typer.Exit(1) from None


@app.command()
def stop(
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait until all has ended.", min=0)] = 120.0,
) -> None:
    """End the service that `errata serve` started from this ERRATA_HOME, as Ctrl-C there does."""
    from errata.local import pidfile

    folder = home() / "serve"
    with errors_as_one_line():
        found = pidfile.read(folder)
        if found is None or not found.is_alive:
            return say(f"nothing serves from {folder}; ERRATA_HOME must be as it was at the start (`make serve`: ./runs)")
        say(f"stopping process {found.pid}, which serves at {found.url} …")
        if not pidfile.stop(found, timeout_s):
            end(f"process {found.pid} has been asked to stop and still runs after {timeout_s:.0f} s; its logs are in {folder}")
    say("stopped")


@app.command()
def status(as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Replicas, their versions, the queue and the last swaps."""
    with errors_as_one_line(), connect(url) as client:
        answer = client.status()
        if as_json:
            return print_json(answer)
        readiness = client.ready()
    if readiness["ready"]:
        say("ready", "green")
    else:
        say(f"not ready: {'; '.join(readiness.get('reasons', []))}", "yellow")
    console.print(_summary(answer))
    console.print(_replicas(answer))
    if swaps := answer.get("timings", [])[-NUM_SWAPS:]:
        console.print(_rows("last swaps", swaps))


def _summary(answer: Mapping[str, Any]) -> Table:
    table = Table(show_header=False)
    for name in ("head", "newest"):
        table.add_row(f"{name} version", shown(answer.get(name, "?")))
    if queue := answer.get("queue"):
        waited = f", the oldest for {queue['age_s']:.1f} s" if queue["depth"] else ""
        table.add_row("queue", f"{queue['depth']:,} of at most {queue['limit']:,} edits wait{waited}")
    for name in ("stalled", "worker", "mirror"):
        if answer.get(name):
            table.add_row(name, shown(_flat(answer[name])))
    return table


def _replicas(answer: Mapping[str, Any]) -> Table:
    """All that the edit worker sees; while it is being replaced, the one that answered."""
    replicas = answer.get("replicas") or [one for one in [answer.get("answered_by")] if one]
    table = Table("replica", "version", "state", "process", title="replicas", title_justify="left")
    for replica in replicas:
        state = {True: "intact", None: "its engine does not answer"}.get(replica.get("intact"), "damaged")
        if replica.get("version") != answer.get("head"):
            state += ", behind"
        if not replica.get("in_rotation", True):
            state += ", out of rotation"
        table.add_row(
            *(shown(replica.get(name, "?")) for name in ("replica", "version")), state, shown(replica.get("pid", "?"))
        )
    return table


def _rows(title: str, rows: list[Mapping[str, Any]]) -> Table:
    """Columns are the fields of the first row."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*(shown(_short(row.get(name, ""))) for name in rows[0]))
    return table


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items() if part is not None)
    return "" if value is None else str(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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
        name = str(json.loads(trained.read_text())["record"]["model"])
    elif measured.exists():
        name = str(json.loads(measured.read_text())["model"])
    else:
        raise typer.BadParameter(f"{artifact} is no artifact of an editor: it has neither artifact.json nor moments.json")
    if name in ("", "..") or Path(name).name != name:
        raise typer.BadParameter(
            f"{artifact} was made on {name!r}, which is no folder's name: name the model's folder (--model)"
        )
    return name


def _fit(name: str) -> str:
    """For a folder's name."""
    return name.lower().replace("/", "-of-").replace("+", "-plus")
