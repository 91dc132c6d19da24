"""The commands `errata serve`, `stop` and `status`, with processes that only wait."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from errata.access_keys import add_key
from errata.local import pidfile
from errata.local.preflight import StartSettings
from errata.local.problems import Problems
from errata.local.services import free_port
from errata.model import gguf
from errata.testbed import smollm2
from tests.fakes.served import Service
from tests.unit.cli.invoke import PROMPT, errata, words


def test_status_shows_readiness_replicas_and_queue(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    shown = words(errata("status"))
    for part in (
        "ready",
        "head version 1",
        "0 of at most 10,000 edits wait",
        "a 0 intact, behind 7",
        "b 0 damaged, behind 7",
        "61.2",
    ):
        assert part in shown
    assert json.loads(errata("status", "--json").output)["worker"]["pid"] == 8
    service.backend.reasons = ["replica b has version 0"]
    service.backend.held = True
    errata("edit", PROMPT, "Nice", "--no-wait")
    shown = words(errata("status"))
    assert "not ready: replica b has version 0" in shown and "1 of at most 10,000 edits wait, the oldest for" in shown


def test_serving_without_an_artifact_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    for editor, says in (("MEND", "make demo"), ("RECT/AlphaEdit", "jobs/moments.py"), ("ROMEO", "R-ROME")):
        done = errata("serve", "--editor", editor)
        assert done.exit_code == 2 and says in done.output.replace("│", "").replace("\n", ""), done.output


def test_a_wrapper_of_a_memory_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no model is made, and that nothing starts."""
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr("errata.cli.serve._run", lambda *_: pytest.fail("it starts"))
    done = errata("serve", "--editor", "RECT/RTD", "--port", str(free_port()))
    assert done.exit_code == 2 and len(done.output.strip().splitlines()) == 1
    assert done.output.startswith("editor: RECT/RTD keeps its edits in a memory, which a wrapper cannot change")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], ("DEFAULT", None)),
        (["--editor", "RLEdit"], ("DEFAULT", "POLICY")),
        (["--editor", "RLEdit", "--model", smollm2.NAME], ("DEFAULT", "POLICY")),
        (["--editor", "FT-L"], ("DEFAULT", None)),
        (["--memory", "answer"], ("DEFAULT", "POLICY")),
    ],
)
def test_without_a_model_the_default_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], found: tuple[str, str | None]
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr("errata.local.models.default_policy", lambda: "POLICY")
    monkeypatch.setattr("errata.local.models.resolved", lambda model: "DEFAULT" if model == smollm2.NAME else model)
    checked: list[StartSettings] = []
    monkeypatch.setattr("errata.local.preflight.problems_of", lambda start: checked.append(start) or Problems())
    monkeypatch.setattr("errata.local.preflight.address_problems", lambda *_: Problems())
    started: list[dict[str, Any]] = []
    monkeypatch.setattr("errata.cli.serve._run", lambda services, given: started.append(given))
    done = errata("serve", *arguments)
    assert done.exit_code == 0, done.output
    assert [(given["model"], given.get("artifact")) for given in started] == [found]
    before, after = checked  # what is made on first use is made in between
    assert before.model == smollm2.NAME and (after.model, after.artifact) == found
    assert before.artifact == (found[1] and str(smollm2.POLICY))


def test_a_second_service_is_refused_while_the_first_makes_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[tuple[int, str]] = []

    def made_beside_a_second_start(model: str) -> str:
        done = errata("serve", "--editor", "FT-L", "--port", str(free_port()))
        answers.append((done.exit_code, words(done)))
        return "DEFAULT"

    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr("errata.local.models.resolved", made_beside_a_second_start)
    monkeypatch.setattr("errata.local.preflight.problems_of", lambda start: Problems())
    monkeypatch.setattr("errata.cli.serve._run", lambda services, given: None)
    assert errata("serve", "--editor", "FT-L", "--port", str(free_port())).exit_code == 0
    ((code, says),) = answers
    assert code == 1 and f"process {os.getpid()} serves from {tmp_path / 'serve'} already" in says
    assert not (tmp_path / "serve" / "service.json").exists()


@pytest.mark.parametrize("options", [[], ["--set", "max_false=0.1"], ["--set", "modules=layers.2.mlp.down_proj"]])
@pytest.mark.parametrize("editor", ["state", "answer"])
def test_a_memory_inside_the_default_model_has_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editor: str, options: list[str]
) -> None:
    served: list[dict[str, object]] = []
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr("errata.local.models.resolved", lambda model: model)
    monkeypatch.setattr("errata.local.preflight.problems_of", lambda start: Problems())
    monkeypatch.setattr("errata.cli.serve._run", lambda services, given: served.append(given))
    for model in ([], ["--model", "another"]):
        assert errata("serve", "--editor", editor, "--port", str(free_port()), *model, *options).exit_code == 0
    default, other = (dict(pair.split("=") for pair in str(one.get("settings", "")).split(";") if pair) for one in served)
    own = dict(option.split("=") for option in options[1:])
    assert other == own and default == (smollm2.SETTINGS["state"] if editor == "state" else {}) | own


def test_a_default_model_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    for arguments in ([], ["--editor", "LocFT"], ["--model", smollm2.NAME]):
        done = errata("serve", *arguments)
        (line,) = done.output.splitlines()
        assert done.exit_code == 2 and line.startswith("model: the default model is not installed: pip install"), done.output
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["--guard", "drift.warn=x"], ["guard"]),
        (["--editor", "FT-L", "--set", "epsilon=x"], ["settings.epsilon"]),
        (["--editor", "MEND", "--dtype", "half"], ["artifact", "dtype"]),
        (["--editor", "FT-L", "--keys", "/none", "--probes", "/none"], ["probes", "keys"]),
        (["--host", "192.0.2.1", "--model", "FILE", "--editor", "MEND"], ["artifact", "keys", "host"]),
        (["--editor", "FT-L", "--model", "FILE", "--device", "gpu"], ["device"]),
    ],
)
def test_what_needs_no_model_is_checked_before_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], fields: list[str]
) -> None:
    """Neither the default model, nor its policy, nor the checkpoint of a GGUF file."""

    def fail(*_: object) -> str:
        raise AssertionError("a model is made, or a policy is measured")

    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    for made in ("resolved", "default_policy", "measured"):
        monkeypatch.setattr(f"errata.local.models.{made}", fail)
    monkeypatch.setattr(smollm2, "check", lambda: None)
    monkeypatch.setattr(gguf, "find_spec", lambda name: name)
    (tmp_path / "a.gguf").write_bytes(gguf.MAGIC)
    given = [str(tmp_path / "a.gguf") if option == "FILE" else option for option in options]
    done = errata("serve", "--port", str(free_port()), *given)
    assert [line.partition(":")[0] for line in done.output.splitlines()] == fields and done.exit_code == 2, done.output


def test_an_operators_own_editor_is_found_in_the_current_folder(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m serving.start` finds it so, too."""
    (tmp_path / "own_editor_here.py").write_text("from errata.editors.fine_tuning.ftl import FTL\n")
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    started: list[dict[str, Any]] = []
    monkeypatch.setattr("errata.cli.serve._run", lambda services, given: started.append(given))
    options = ["--model", str(model_dir), "--port", str(free_port())]
    done = errata("serve", "--editor", "own_editor_here:FTL", *options)
    assert done.exit_code == 0 and started[0]["editor"] == "own_editor_here:FTL", done.output
    done = errata("serve", "--editor", "own_editor_here:FTM", *options)
    (line,) = done.output.splitlines()
    assert done.exit_code == 2 and line.startswith("editor: the module own_editor_here has no class 'FTM'"), line


LIMIT_S = 10.0  # of one core, on which nothing else runs; most of it is the import of torch
LIMIT_LOADED_S = 120.0  # of the clock, where other processes have the cores: it only tells an end from a service that waits


def test_a_misspelt_setting_ends_the_command_within_seconds(tmp_path: Path, model_dir: Path) -> None:
    """A fresh process starts no Ray and writes one line."""
    options = ["--editor", "FT-L", "--model", str(model_dir), "--port", str(free_port()), "--set", "epsilom=1"]
    command = [sys.executable, "-c", "from errata.cli import app; app()", "serve", *options]
    environment = {**os.environ, "ERRATA_HOME": str(tmp_path / "home")}
    limit_s = 1.5 * LIMIT_S if os.getloadavg()[0] < len(os.sched_getaffinity(0)) / 2 else LIMIT_LOADED_S
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=limit_s)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT_S
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "home").exists()
    assert line.startswith("settings.epsilom: FTL has no field 'epsilom'") and "did you mean epsilon" in line


def test_a_trained_editor_edits_another_model_with_the_newest_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    (tmp_path / "hypernets" / "demo-0").mkdir(parents=True)
    monkeypatch.setattr("errata.local.models.ready", lambda model: "")
    monkeypatch.setattr("errata.local.models.resolved", lambda model: f"made of {model}")
    monkeypatch.setattr("errata.local.preflight.problems_of", lambda start: Problems())
    monkeypatch.setattr("errata.local.preflight.address_problems", lambda *_: Problems())
    started: list[dict[str, Any]] = []
    monkeypatch.setattr("errata.cli.serve._run", lambda services, given: started.append(given))
    assert errata("serve", "--model", "my.gguf", "--editor", "RLEdit").exit_code == 0
    assert started[0]["model"] == "made of my.gguf" and started[0]["artifact"] == str(tmp_path / "hypernets" / "demo-0")


def test_a_preset_is_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    for editor, preset, says in (
        ("UltraEdit", "llama4", "UltraEdit has no preset 'llama4'; there are llama3_8b"),
        ("RECT/MEMIT", "gemma2_9b", "MEMIT has no preset 'gemma2_9b'; there are gpt2_xl"),
        ("LocFT", "gpt_j", "it has none: set its fields"),
        ("RLEdit", "llama3_8b", "RLEdit is trained, so it takes no preset"),
    ):
        done = errata("serve", "--editor", editor, "--preset", preset, "--model", "m")
        assert done.exit_code == 2 and says in words(done), done.output
    assert not (tmp_path / "serve").exists()


def test_all_problems_are_listed_before_anything_starts(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line each, with the field and a value that works; no folder is made."""
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = ("modules=layers.1.mlp.down_prj", "epsilon=x", "no sign", "seed=1;2")
        options = [part for setting in settings for part in ("--set", setting)]
        options += [
            "--dtype",
            "half",
            "--guard",
            "drift.warn=x",
            "--port",
            str(port),
            "--probes",
            "/none",
            "--host",
            "127.0.0.1",
        ]
        done = errata("serve", "--editor", "FT-L", "--model", str(model_dir), *options)
    lines = done.output.splitlines()
    fields = [line.partition(":")[0] for line in lines]
    wanted = ["settings", "settings", "dtype", "guard", "probes", "settings.epsilon", "settings.modules", "port"]
    assert done.exit_code == 2 and fields == wanted, done.output
    assert "give modules=layers.1.mlp.down_proj" in lines[6] and not (tmp_path / "home").exists()
    done = errata("serve", "--editor", "FT-L", "--model", str(model_dir), "--host", "0.0.0.0")
    assert "errata keys add" in done.output


WAITING = """
import json
from errata.local import services
class Waiting(services.LocalServices):
    def start_mlflow(self): self.start("mlflow", "sleep", "1000")
    def start_ray(self): self.start("ray", "sleep", "1000")
    def wait_mlflow(self): pass
    def wait_serve(self): pass
    def start_serve(self, **arguments):
        self.start("serve", "sleep", "1000")
        (self.directory / "arguments.json").write_text(json.dumps({"host": self.http_host, **arguments}, default=str))
services.LocalServices = Waiting
from errata.cli import app
app()
"""


def serve(home: Path, model: Path, *options: str) -> subprocess.Popen[str]:
    """Start `errata serve` with processes that only wait, and return when it is ready."""
    port = [] if "--port" in options else ["--port", str(free_port())]
    command = [sys.executable, "-c", WAITING, "serve", "--editor", "FT-L", "--model", str(model), *port, *options]
    environment = {**os.environ, "ERRATA_HOME": str(home)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    seen = ""
    while "ready:" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return process


def test_serve_runs_until_it_is_stopped(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    keys, port = tmp_path / "keys.json", free_port()
    add_key(keys, "ann", "admin")
    options = f"--host 0.0.0.0 --keys {keys} --replicas 2 --max-queue 50 --limit max_streams=4 --pause wait --port {port}"
    process = serve(tmp_path, model_dir, *options.split())
    children = psutil.Process(process.pid).children()
    arguments = json.loads((tmp_path / "serve" / "arguments.json").read_text())
    expected = {"host": "0.0.0.0", "keys": str(keys), "replicas": 2, "max_queue": "50", "pause": "wait", "editor": "FT-L"}
    expected["max_streams"] = "4"
    assert expected.items() <= arguments.items()
    done = errata("serve", "--editor", "FT-L", "--model", str(model_dir))
    assert done.exit_code == 1 and f"process {process.pid} serves" in done.output and "errata stop" in done.output
    done = errata("stop")
    assert done.exit_code == 0 and f"http://127.0.0.1:{port}" in done.output and "stopped" in done.output
    assert process.wait(timeout=10) == 0 and len(children) == 3
    assert not any(child.is_running() for child in children) and not (tmp_path / "serve" / pidfile.NAME).exists()
    done = errata("stop")
    assert done.exit_code == 0 and "no service runs" in done.output


def test_serve_ends_with_ray(tmp_path: Path, model_dir: Path) -> None:
    process = serve(tmp_path, model_dir)
    children = psutil.Process(process.pid).children()
    os.kill(children[1].pid, signal.SIGKILL)
    assert process.stdout is not None
    last_line = process.stdout.read().splitlines()[-1]
    assert last_line.startswith("ray has ended: ") and "ray.log" in last_line and process.wait(timeout=10) == 1
    assert not any(child.is_running() for child in children)


def test_stop_leaves_other_processes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    record = tmp_path / "serve" / pidfile.NAME
    record.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        started = psutil.Process(other.pid).create_time()
        record.write_text(json.dumps({"pid": other.pid, "started": started - 60, "url": "u"}))
        assert "no service runs" in errata("stop").output
        record.write_text(json.dumps({"pid": other.pid, "started": started, "url": "u"}))
        done = errata("stop", "--timeout", "0.3")
        assert done.exit_code == 1 and f"process {other.pid} still runs" in done.output
        other.communicate(b"\n")
        assert other.returncode == 0
    record.write_text("{")
    done = errata("stop")
    assert done.exit_code == 1 and "does not name the process" in done.output


def test_serving_other_machines_requires_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    for options, says in (
        (["--host", "0.0.0.0"], "errata keys add"),
        (["--keys", str(tmp_path / "none")], "none cannot be read"),
    ):
        done = errata("serve", "--editor", "FT-L", "--model", "m", *options)
        assert done.exit_code == 2 and says in words(done)
    assert errata("serve", "--pause", "never").exit_code == 2 and not (tmp_path / "serve").exists()


def test_a_service_that_cannot_start_is_one_line_with_the_reason_and_the_log(tmp_path: Path, model_dir: Path) -> None:
    fails = "echo Traceback; echo 'ray.ServeError: x'; echo 'ValueError: no such model'; echo bye; exit 3"
    code = WAITING.replace('self.start("serve", "sleep", "1000")', f'self.start("serve", "sh", "-c", {fails!r})')
    code = code.replace("def wait_serve(self): pass", 'def wait_serve(self): self.wait("serve", "http://127.0.0.1:9")')
    options = ["--editor", "FT-L", "--model", str(model_dir), "--port", str(free_port())]
    command = [sys.executable, "-c", code, "serve", *options]
    environment = {**os.environ, "ERRATA_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = tmp_path / "serve" / "serve.log"
    assert done.returncode == 1 and done.stderr == (
        f"serve ended with exit code 3: ValueError: no such model; its log: {log}\n"
    )
    assert done.stdout.splitlines()[0].startswith(f"logs: {log}")


def test_ctrl_c_while_the_services_start_stops_them(tmp_path: Path, model_dir: Path) -> None:
    blocking = "def wait_serve(self): print('waiting', flush=True); time.sleep(100)"
    never_ready = WAITING.replace("def wait_serve(self): pass", blocking)
    command = [sys.executable, "-c", "import time\n" + never_ready, "serve", "--editor", "FT-L", "--model", str(model_dir)]
    environment = {**os.environ, "ERRATA_HOME": str(tmp_path)}
    with subprocess.Popen(
        [*command, "--port", str(free_port())], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        assert any("waiting" in line for line in process.stdout)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0 and "stopped" in process.stdout.read()
    assert len(children) == 3 and not any(child.is_running() for child in children)
    assert not (tmp_path / "serve" / pidfile.NAME).exists()
