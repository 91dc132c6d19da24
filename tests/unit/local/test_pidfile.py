"""The record of the process that serves from a home folder; one process at a time serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from errata.local import pidfile
from errata.local.pidfile import AlreadyRunning, recorded_service
from errata.locks import hold

SERVER = """
import sys
from pathlib import Path
from errata.local.pidfile import AlreadyRunning, recorded_service
sys.stdin.readline()
try:
    with recorded_service(Path(sys.argv[1]), "http://" + sys.argv[2]):
        print("serves", flush=True)
        sys.stdin.readline()
except AlreadyRunning as running:
    print(running, flush=True)
"""


def server(folder: Path, name: str) -> subprocess.Popen[str]:
    """Start a process that serves from `folder` between two lines on its standard input."""
    command = [sys.executable, "-c", SERVER, str(folder), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str], line: str = "\n") -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline()


def test_of_many_concurrent_starts_one_serves(tmp_path: Path) -> None:
    started = [server(tmp_path / "serve", str(number)) for number in range(4)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline() for process in started if process.stdout is not None]
    (serving,) = [process for process, answer in zip(started, answers, strict=True) if answer == "serves\n"]
    found = pidfile.read(tmp_path / "serve")
    assert found is not None and found.pid == serving.pid
    assert sum("end it with `errata stop`" in answer for answer in answers) == 3
    for process in started:
        process.communicate("\n")
    assert pidfile.read(tmp_path / "serve") is None


def test_a_refused_start_names_the_process_and_changes_nothing(tmp_path: Path) -> None:
    with server(tmp_path, "first") as first:
        assert said(first) == "serves\n"
        before = (tmp_path / pidfile.NAME).read_bytes()
        wanted = f"process {first.pid} serves from {tmp_path} already, at http://first"
        with pytest.raises(AlreadyRunning, match=wanted), recorded_service(tmp_path, "http://second"):
            raise AssertionError("it serves")
        assert (tmp_path / pidfile.NAME).read_bytes() == before
        first.communicate("\n")


def test_a_killed_service_leaves_the_home_free(tmp_path: Path) -> None:
    with server(tmp_path, "first") as first:
        assert said(first) == "serves\n"
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=10)
    left = pidfile.read(tmp_path)
    assert left is not None and not left.is_alive
    with recorded_service(tmp_path, "http://second"):
        found = pidfile.read(tmp_path)
        assert found is not None and found.is_alive and found.url == "http://second"
    assert pidfile.read(tmp_path) is None


def test_a_record_that_fits_another_process_prevents_no_start(tmp_path: Path) -> None:
    """A process with this id and start exists, for example in another container, but no process holds the lock."""
    me = {"pid": os.getpid(), "started": psutil.Process().create_time(), "url": "u"}
    (tmp_path / pidfile.NAME).write_text(json.dumps(me))
    with recorded_service(tmp_path, "http://me"):
        found = pidfile.read(tmp_path)
        assert found is not None and found.url == "http://me"


@pytest.mark.parametrize("record", ["{", None])
def test_without_a_record_the_lock_names_the_process(tmp_path: Path, record: str | None) -> None:
    if record is not None:
        (tmp_path / pidfile.NAME).write_text(record)
    wanted = f"held by process {os.getpid()}"
    with hold(tmp_path / pidfile.LOCK), pytest.raises(AlreadyRunning, match=wanted), recorded_service(tmp_path, "u"):
        raise AssertionError("it serves")
