"""Start and end of a job: its own lines go to the terminal, the frameworks' to a log, a failure is one line."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import ray

from errata.client.errors import ErrataError
from errata.local.services import ServiceFailed
from errata.local.terminal import Terminal
from jobs.workers import TrainingGivenUp

JOBS = ("pretrain", "train", "tune", "moments", "bench", "demo")  # a job shows the lines of those that it starts, too
EXPECTED = (ValueError, OSError, TrainingGivenUp, ServiceFailed, ErrataError)
LAST_LINES_S = 0.6  # Ray forwards what workers print every half second
INTERRUPTED = 130  # the shell's exit code for Ctrl-C

Chosen = TypeVar("Chosen")


def run_job(read: Callable[[Sequence[str]], Chosen], run: Callable[[Chosen], object]) -> None:
    """Do what the command line says; `read` makes what `run` takes, and raises `ValueError` or `OSError` for wrong arguments.

    A failure ends the process with code 1 and one line on standard error. Tracebacks go to the log.
    """
    script = Path(sys.argv[0])
    with ExitStack() as stack:
        try:
            chosen = read(sys.argv[1:])
            terminal = stack.enter_context(Terminal(script.stem, JOBS))
        except (ValueError, OSError) as wrong:
            sys.exit(f"{script.name}: {wrong}")
        if terminal.log:
            terminal.console.print(f"{script.stem}: log in {terminal.log}", highlight=False, soft_wrap=True)
        for ending in (signal.SIGTERM, signal.SIGHUP):  # By default they end the process and leave its services running.
            signal.signal(ending, _interrupt)
        with _Failures(script.name, terminal):
            run(chosen)


def _interrupt(_number: int, _frame: object) -> None:
    """End as Ctrl-C does; a second signal does not disturb the cleaning up."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Failures:
    """Context manager: ends a job whose body fails with one line that says why."""

    def __init__(self, script: str, terminal: Terminal) -> None:
        self._script, self._terminal = script, terminal

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stop_ray()
        if error is None or isinstance(error, SystemExit):
            return
        self._terminal.fail(f"{self._script}: {reason_of(error)}")
        if self._terminal.log is None and not isinstance(error, EXPECTED):
            return  # in the log of a Ray job, Python's own traceback follows
        self._terminal.log_traceback(error)
        raise SystemExit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1) from None


def reason_of(error: BaseException) -> str:
    """Return the first line of an expected failure, preceded by its type if it is a fault of the program."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues where it can"
    first = str(error).strip().partition("\n")[0].rstrip(":")
    return first if isinstance(error, EXPECTED) else f"unexpected {type(error).__name__}: {first}"


def stop_ray() -> None:
    """Disconnect from Ray after the workers' last lines have arrived."""
    if ray.is_initialized():
        time.sleep(LAST_LINES_S)
        ray.shutdown()
