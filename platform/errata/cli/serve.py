"""The commands `errata serve`, `stop` and `status`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from errata.cli.console import (
    DEFAULT_URL,
    AsJson,
    Url,
    connect,
    console,
    errors,
    errors_as_one_line,
    fail,
    print_json,
    say,
    shown,
)
from errata.home import home

if TYPE_CHECKING:
    from errata.local.preflight import StartSettings
    from errata.local.problems import Problem, Problems
    from errata.local.services import LocalServices

app = typer.Typer()
WATCHED = "ray"  # if Ray ends, the service ends too
NUM_SWAPS = 5


class Pause(StrEnum):
    """Requests in flight at a swap: they keep running, or the swap waits for them."""

    KEEP = "keep"
    WAIT = "wait"


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Folder or GGUF file of the model; without it, that of the artifact.")] = "",
    artifact: Annotated[str, typer.Option(help="Folder of a trained policy or of moments; without it, the shipped one.")] = "",
    editor: Annotated[str, typer.Option(help="Name of the editor (docs/editors.md); the artifact's, or `answer`.")] = "",
    memory: Annotated[str, typer.Option(help="Memory that answers until the weights have learnt an edit: answer, SCR.")] = "",
    consolidate: Annotated[str, typer.Option(help="When they learn: size=16,age=60 (s), one of the two, or never.")] = "",
    preset: Annotated[str, typer.Option(help="A paper's settings for the model, such as llama3_8b; docs/plans.md.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="field=value of the editor; may be repeated.")] = None,
    guard: Annotated[list[str] | None, typer.Option(help="field=value of the guard, such as perplexity.refuse=2.")] = None,
    probes: Annotated[str, typer.Option(help="File of probes that no edit may change; without it, the model's own.")] = "",
    ledger: Annotated[str, typer.Option(help="Folder of the ledger; created if it does not exist.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; --keys is needed beyond this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.", min=1, max=65535)] = 8000,
    keys: Annotated[str, typer.Option(help="File of access keys; `errata keys add` makes it.", envvar="ERRATA_KEYS")] = "",
    replicas: Annotated[int, typer.Option(help="Number of replicas, each with its own engine.", min=1)] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of a replica; 0.5 shares one with the editor (--device cuda).", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Device of the editor: cpu, cuda, or cuda:0,cuda:1 for a large model.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Type of the weights, such as bfloat16.")] = "float32",
    max_queue: Annotated[
        int | None, typer.Option(help="Edits that may wait; posts beyond are answered with 429.", min=1)
    ] = None,
    limit: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of a limit; docs/access.md lists them.")] = None,
    pause: Annotated[Pause, typer.Option(help="Requests in flight at a swap keep running, or it waits.")] = Pause.KEEP,
) -> None:
    """Start Ray, MLflow and the Serve application on this machine; Ctrl-C or `errata stop` stops them.

    Without a model and an artifact, the default model is served, SmolLM2-135M-Instruct, and without an editor and an artifact
    corrections are kept in a memory of answers. With --memory, they are answered from it until the editor's weights do.
    """
    from errata.editors.build import DEFAULT_EDITOR, editor_for
    from errata.local.pidfile import AlreadyRunning, check_not_running, recorded_service
    from errata.local.problems import Problems
    from errata.local.services import LocalServices, ServiceFailed

    root, problems = home(), Problems()
    with errors_as_one_line(also=(AlreadyRunning,)):
        check_not_running(root / "serve")
    given_pairs = (("settings", settings), ("guard", guard), ("limits", limit))
    pairs = {name: _pairs(name, texts or [], problems) for name, texts in given_pairs}
    editor = problems.checked("artifact", editor_for, editor, artifact, preset, memory) or DEFAULT_EDITOR
    name = f"{_file_name(editor)}-{_file_name(memory)}" if memory else _file_name(editor)
    model, artifact = _model_and_artifact(model, artifact, editor, preset, problems)
    _complete(pairs, model, editor, max_queue)
    given: dict[str, Any] = {"model": model, "editor": editor, "replicas": replicas, "gpus": gpus, "device": device}
    texts = {"artifact": artifact, "preset": preset, "probes": probes, "memory": memory, "consolidate": consolidate}
    given |= {field: text or None for field, text in texts.items()} | {"dtype": dtype}
    given |= {"ledger": ledger or str(root / "serve" / f"ledger-{name}"), "keys": str(Path(keys).absolute()) if keys else None}
    start = _checked(given | pairs, host, port, problems)
    services = LocalServices(root / "serve", http_port=port, http_host=host, with_jobs=False)
    # Recorded before the model is made and its policy is measured: a second service would wait for both, and repeat them.
    with errors_as_one_line(also=(AlreadyRunning, ServiceFailed)), recorded_service(services.directory, services.url):
        # A registered model mirrors one ledger.
        given |= _made(start) | {"pause": pause.value, "mlflow_name": f"errata-{name}"}
        _run(services, _arguments(given, pairs))


def _arguments(given: Mapping[str, Any], pairs: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the arguments of `serving.app:build`: those that are given, the limits by name, and other pairs as texts."""
    found = {name: value for name, value in given.items() if value is not None} | dict(pairs["limits"])
    texts = {name: ";".join(f"{k}={v}" for k, v in one.items()) for name, one in pairs.items() if one and name != "limits"}
    return found | texts


def _model_and_artifact(model: str, artifact: str, editor: str, preset: str, problems: Problems) -> tuple[str, str]:
    """Complete the names of the model and of the artifact where they are not given; nothing is made or measured."""
    from errata.editors import needs
    from errata.local.models import shipped_policy
    from errata.testbed.smollm2 import EDITOR, NAME

    try:
        kind = "" if ":" in editor else needs(editor, preset)
    except ValueError:
        return model, artifact  # The other checks say it.
    if not artifact and kind:
        is_default = editor == EDITOR and model in ("", NAME)
        artifact = shipped_policy() if is_default else problems.checked("artifact", _newest, home() / kind) or ""
    if not model:
        # The artifact of an operator's own editor may be anything.
        is_ours = bool(artifact) and ":" not in editor
        model = (problems.checked("artifact", _model_of, Path(artifact)) or "") if is_ours else NAME
    return model, artifact


def _complete(pairs: dict[str, dict[str, str]], model: str, editor: str, max_queue: int | None) -> None:
    """Add the settings that an editor has on the default model, unless others are given, and the limit with its own option."""
    from errata.testbed.smollm2 import NAME, SETTINGS

    if model == NAME:
        pairs["settings"] = SETTINGS.get(editor, {}) | pairs["settings"]
    if max_queue:
        pairs["limits"]["max_queue"] = str(max_queue)


def _pairs(name: str, texts: Sequence[str], problems: Problems) -> dict[str, str]:
    """Read `field=value` texts; a text of another form becomes a problem."""
    found: dict[str, str] = {}
    for text in texts:
        field, sign, value = text.partition("=")
        if not sign or not field.strip() or ";" in text:
            problems.note(name, f"{text!r} is not of the form field=value without a semicolon; each field has its own option")
        else:
            found[field.strip()] = value.strip()
    return found


def _checked(given: Mapping[str, Any], host: str, port: int, problems: Problems) -> StartSettings:
    """Check all that needs no model that is made, and no folder: what is wrong ends the command."""
    from errata.local.preflight import StartSettings, address_problems, machine_problems, problems_of

    if ":" in given["editor"]:  # The operator's own: it is imported as by `python -m serving.start`, from this folder.
        sys.path.insert(0, str(Path.cwd()))
    named = {problem.field for problem in problems.of("artifact")}  # An artifact that was not found is one problem.
    start = StartSettings(**given)
    found = [*problems_of(start), *machine_problems(start), *address_problems(host, port, bool(start.keys))]
    _refuse([*problems, *(problem for problem in found if problem.field not in named)])
    return start


def _made(start: StartSettings) -> dict[str, Any]:
    """Return the model and the artifact as they are served: make the model, measure its policy, check both; it may be slow."""
    from errata.local.models import measured, ready, resolved
    from errata.local.preflight import problems_of
    from errata.local.problems import Problems

    judged, final = replace(start, model=ready(start.model)), Problems()
    model = final.checked("model", resolved, start.model)
    _refuse(final)  # The policy is measured on the model.
    artifact = final.checked("artifact", measured, start.artifact)
    made = replace(start, model=str(model), artifact=artifact)
    _refuse(final or ([] if made == judged else problems_of(made)))
    return {"model": model, "artifact": artifact}


def _refuse(problems: Sequence[Problem]) -> None:
    """Print the problems, a line each, and end the command with exit code 2, if there are any."""
    for line in dict.fromkeys(map(str, problems)):
        errors.print(shown(line), style="red", soft_wrap=True)
    if problems:
        raise typer.Exit(2)


def _run(services: LocalServices, arguments: Mapping[str, Any]) -> None:
    """Serve until a signal or the end of Ray. All started services are stopped, also if a later one fails to start."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with services:
        try:
            _start(services, arguments)
            say(f"ready: {services.url} (console: {services.url}/console, MLflow: {services.mlflow_url})")
            say("Ctrl-C or `errata stop` stops all services")
            while not services.has_ended(WATCHED):
                time.sleep(0.5)
            raise services.failure(WATCHED, "has ended")
        except KeyboardInterrupt:
            say("stopping …")
        finally:  # a second signal would leave processes behind
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("stopped")


def _start(services: LocalServices, arguments: Mapping[str, Any]) -> None:
    """Start the services side by side; their own output goes to their logs."""
    say(f"logs: {services.log('serve')}, ray.log and mlflow.log beside it")
    say("starting MLflow, Ray and the replicas: vLLM loads the model (under a minute) …")
    services.start_mlflow()
    services.start_ray()
    services.start_serve(mlflow=services.mlflow_url, **arguments)
    services.wait_serve()
    services.wait_mlflow()


@app.command()
def stop(
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for its end.", min=0)] = 120.0,
) -> None:
    """Stop the service that `errata serve` started from this ERRATA_HOME, as Ctrl-C does."""
    from errata.local import pidfile

    folder = home() / "serve"
    with errors_as_one_line():
        found = pidfile.read(folder)
        if found is None or not found.is_alive:
            return say(f"no service runs from {folder}; ERRATA_HOME must be as at its start (`make serve`: ./runs)")
        say(f"stopping process {found.pid}, which serves at {found.url} …")
        if not pidfile.stop(found, timeout_s):
            fail(f"process {found.pid} still runs {timeout_s:.0f} s after it was asked to stop; its logs are in {folder}")
    say("stopped")


@app.command()
def status(as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Print readiness, replicas with their versions, the queue and the last swaps."""
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
    """List the replicas that the edit worker knows; while it is being replaced, the one that answered."""
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
    """Make a table whose columns are the fields of the first row."""
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
        raise ValueError(f"there is no artifact in {folder} yet: {how}, or name one (--artifact)")
    return str(found[-1])


def _model_of(artifact: Path) -> str:
    """Read the name of the model on which a policy was trained or moments were measured, and return its folder or name."""
    from errata.model.json_file import read_json
    from errata.testbed.smollm2 import NAME

    trained, moments = artifact / "artifact.json", artifact / "moments.json"
    if trained.exists():
        name = str((read_json(trained).get("record") or {}).get("model", ""))
    elif moments.exists():
        name = str(read_json(moments).get("model", ""))
    else:
        raise ValueError(f"{artifact} is not an artifact of an editor: it has neither artifact.json nor moments.json")
    if name in ("", "..") or Path(name).name != name:
        raise ValueError(
            f"{artifact} was made on {name!r}, which is not the name of a folder: give the model's folder (--model)"
        )
    return name if name == NAME else str(home() / "testbed" / name)


def _file_name(name: str) -> str:
    """Make the editor's name fit for the name of a folder and of a registered model; case tells an operator's own apart."""
    own = name.replace(":", "-").replace("/", "-")
    return own if ":" in name else name.lower().replace("/", "-of-").replace("+", "-plus")
