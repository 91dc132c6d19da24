"""Failures of commands: one red line with advice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from errata.access_keys import add_key
from errata.local.services import free_port
from tests.fakes.served import Answer, Cut, Service, serving
from tests.unit.cli.invoke import PROMPT, errata, file_of

COMMANDS = [
    ("edit", "p", "t"), ("edits",), ("ask", "p"), ("versions",), ("versions", "1"), ("diff", "0", "1"), ("rollback", "0"),
    ("revert", "a"), ("blame", "p"), ("status",), ("watch",), ("watch", "a"), ("import", "FILE"), ("score", "FILE"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_missing_service_is_reported(command: tuple[str, ...], tmp_path: Path) -> None:
    given = [file_of(tmp_path, ["a"]) if part == "FILE" else part for part in command]
    done = errata(*given, "--url", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert "does not answer" in done.output and "errata serve" in done.output and "make serve" in done.output


@pytest.mark.parametrize(
    ("code", "headers", "says"),
    [
        (401, {}, "ERRATA_KEY is not set: a key of the role admin"),
        (403, {}, "a key of the role admin"),
        (404, {}, "`errata versions` the versions"),
        (409, {}, "try again"),
        (413, {}, "post less"),
        (422, {}, "nothing was changed"),
        (429, {"Retry-After": "90"}, "try again in 90 s"),
        (503, {"Retry-After": "90"}, "try again in 90 s; `errata status`"),
        (500, {}, "HTTP 500"),
    ],
)
def test_a_refusal_is_one_line_with_advice(service: Service, code: int, headers: dict[str, str], says: str) -> None:
    body = json.dumps({"error": {"message": "so\nit [b]is[/b]", "code": "some_code", "field": None, "edit": None}})
    service.troubles.coming.append(Answer(code, headers, body))
    done = errata("rollback", "0")
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1
    assert f"so it [b]is[/b] (HTTP {code})" in done.output and says in done.output


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "Not Found"},  # FastAPI's
        {"error": {"message": "Nicht gefunden", "type": "Not Found", "param": None, "code": 404}},  # vLLM's, in other words
    ],
)
def test_a_missing_route_is_reported(service: Service, body: dict[str, Any]) -> None:
    service.troubles.coming.append(Answer(404, {}, json.dumps(body)))
    assert "no such route" in errata("status").output


def test_what_errata_does_not_find_is_no_missing_route(service: Service) -> None:
    body = {"error": {"message": "Not Found", "code": "unknown_version", "field": "version", "edit": None}}
    service.troubles.coming.append(Answer(404, {}, json.dumps(body)))
    assert "`errata versions` the versions" in errata("rollback", "9").output


def test_a_short_outage_is_waited_out(service: Service) -> None:
    service.troubles.coming.extend([Answer(503, {"Retry-After": "0"}), Cut(0)])
    done = errata("edit", PROMPT, "Lyon")
    assert done.exit_code == 0 and "trying again" in done.output and len(service.queued) == 1


def test_a_refused_key_is_explained_and_never_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    readers, editors = add_key(file, "rob", "read"), add_key(file, "eve", "edit")
    with serving(tmp_path, file) as service:
        monkeypatch.setenv("ERRATA_URL", service.url)
        done = errata("status")
        assert done.exit_code == 1 and "ERRATA_KEY is not set" in done.output and "role read" in done.output
        monkeypatch.setenv("ERRATA_KEY", "wrong-key")
        done = errata("status")
        assert done.exit_code == 1 and "unknown or has expired" in done.output and "wrong-key" not in done.output
        monkeypatch.setenv("ERRATA_KEY", readers)
        assert errata("status").exit_code == 0
        done = errata("edit", PROMPT, "Lyon")
        assert done.exit_code == 1 and "role edit" in done.output and readers not in done.output
        monkeypatch.setenv("ERRATA_KEY", editors)
        assert errata("edit", PROMPT, "Lyon").exit_code == 0 and "eve" in errata("edits").output
        done = errata("rollback", "0")
        assert done.exit_code == 1 and "role admin" in done.output and editors not in done.output
        monkeypatch.setenv("ERRATA_KEY", f"{editors}\n")
        done = errata("status")
        assert done.exit_code == 1 and "line ends" in done.output and editors not in done.output


LOGGED = """
import os, typer
from errata.cli.console import logged
def command():
    with logged("bench") as console:
        os.write(1, b"a framework's line\\n")
        console.print("half done")
        raise ValueError("no such file")
typer.run(command)
"""


def test_lines_of_frameworks_go_to_a_log_that_a_failure_names(tmp_path: Path) -> None:
    environment = {**os.environ, "ERRATA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LOGGED], env=environment, capture_output=True, text=True, check=False)
    (log,) = (tmp_path / "logs").iterdir()
    assert (done.returncode, done.stdout) == (1, f"bench: log in {log}\nhalf done\n")
    assert done.stderr == f"bench: no such file; the whole log: {log}\n"
    assert "a framework's line" in log.read_text() and "Traceback" in log.read_text()
