"""The terminal of a command: lines that are shown, and lines that are only logged."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from errata.local.terminal import RAY_JOB, Terminal, console

FORWARDED = (
    b"\x1b[36m(RayTrainWorker pid=7, ip=10.0.0.1)\x1b[0m train: 2/3\n(TrainController pid=8) [State Transition] RUNNING\n"
)


@pytest.fixture(autouse=True)
def _no_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAY_JOB, raising=False)


def printed(line: str) -> None:
    """Write to descriptor 1, which pytest's own `sys.stdout` goes past."""
    os.write(1, f"{line}\n".encode())


def log_of(terminal: Terminal) -> str:
    assert terminal.log is not None
    return terminal.log.read_text()


def test_lines_of_speakers_are_shown_and_all_lines_are_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Terminal("train", folder=tmp_path) as terminal:
        printed("train: 1/3")
        os.write(2, b"W0000 a library warns\n")
        os.write(1, FORWARDED)
        console().print("a table")
        subprocess.run(["echo", "train: 3/3"], check=True)
        printed("training: not a speaker")
        printed("train.py: the reason")
    printed("afterwards")
    shown = capfd.readouterr()
    assert shown.out.splitlines() == ["train: 1/3", "train: 2/3", "a table", "train: 3/3", "train.py: the reason", "afterwards"]
    assert shown.err == ""
    for line in ("train: 1/3", "a library warns", "State Transition", "train: 3/3", "not a speaker"):
        assert line in log_of(terminal)


def test_a_line_is_shown_while_the_command_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Terminal("serve", folder=tmp_path) as terminal:
        os.write(1, b"serve: half a")
        terminal.show_new_lines()
        assert capfd.readouterr().out == ""
        os.write(1, b" line\n")
        terminal.show_new_lines()
        assert capfd.readouterr().out == "serve: half a line\n"


def test_a_failure_is_one_line_with_the_log_and_its_traceback_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal("train", folder=tmp_path)
    with pytest.raises(ValueError, match="no such matrix"), terminal:
        try:
            raise ValueError("no such matrix")
        except ValueError as wrong:
            terminal.fail(f"{wrong}\nwith details")
            raise
    assert capfd.readouterr().err == f"no such matrix; the whole log: {terminal.log}\n"
    assert "Traceback" in log_of(terminal)


def test_the_output_of_a_submitted_job_is_not_redirected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(RAY_JOB, "{}")
    with Terminal("train", folder=tmp_path) as terminal:
        printed("a library's line")
        terminal.fail("the reason")
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("a library's line\n", "the reason\n")
    assert terminal.log is None and not list(tmp_path.iterdir())
