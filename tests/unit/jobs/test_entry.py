"""End of a job: one line that says why, the log with the traceback, and the exit code."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from errata.local.services import ServiceFailed
from jobs.entry import INTERRUPTED, reason_of
from jobs.workers import TrainingGivenUp
from tests.unit.jobs.commands import Commands

SCRIPT = """
import os, sys
from jobs.entry import run_job

def run(what):
    print("train: 1/2", flush=True)
    os.write(2, b"a library warns\\n")
    exec(what)

sys.argv[0] = "jobs/train.py"
run_job(lambda arguments: arguments[0], run)
"""


def ended(command: Commands, home: Path, what: str, **environment: str) -> CompletedProcess[str]:
    """Run a job that does `what`."""
    return command.run([SCRIPT, what], {"ERRATA_HOME": str(home), "PATH": "/usr/bin:/bin", **environment})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("the file has changed\nmore"), "the file has changed"),
        (TrainingGivenUp("train-a was given up:\nTraceback"), "train-a was given up"),
        (ServiceFailed("mlflow ended with code 1:\nits log"), "mlflow ended with code 1"),
        (KeyError("x"), "unexpected KeyError: 'x'"),
        (KeyboardInterrupt(), "interrupted; the same command continues where it can"),
    ],
)
def test_the_reason_is_one_line(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason


def test_a_job_that_fails_shows_one_line_and_logs_the_traceback(command: Commands, tmp_path: Path) -> None:
    done = ended(command, tmp_path, "{}['x']")
    (log,) = (tmp_path / "logs").iterdir()
    assert done.returncode == 1 and done.stdout.splitlines() == [f"train: log in {log}", "train: 1/2"]
    assert done.stderr == f"train.py: unexpected KeyError: 'x'; the whole log: {log}\n"
    assert "a library warns" in log.read_text() and "Traceback" in log.read_text()


@pytest.mark.parametrize("body", ["raise KeyboardInterrupt", "__import__('signal').raise_signal(15)"], ids=["key", "signal"])
def test_an_interrupted_job_cleans_up_and_ends_as_the_shell_expects(command: Commands, tmp_path: Path, body: str) -> None:
    done = ended(command, tmp_path, body)
    assert done.returncode == INTERRUPTED and "interrupted" in done.stderr


def test_a_submitted_job_writes_everything_to_its_own_log(command: Commands, tmp_path: Path) -> None:
    done = ended(command, tmp_path, "{}['x']", RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    first, second, *rest = done.stderr.splitlines()
    assert (done.stdout, first) == ("train: 1/2\n", "a library warns")
    assert second == "train.py: unexpected KeyError: 'x'" and rest[-1] == "KeyError: 'x'"
    assert done.returncode == 1 and not (tmp_path / "logs").exists()
