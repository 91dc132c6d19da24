"""The terminal of a command: our own lines are shown, the frameworks' lines go to a log file.

Ray, Serve, MLflow, transformers and every child process write to file descriptors 1 and 2. `Terminal` points both at
`$ERRATA_HOME/logs/NAME-TIME.log` and keeps the original descriptors for itself. A thread follows the log and shows the lines
that begin with a speaker's name, such as `train: 3/30`, also where Ray forwards them from a worker
(`(RayTrainWorker pid=7) train: 3/30`) or a child process writes them. Tables and progress bars go through `console`.

The log is a file and not a pipe: a child that outlives the command still has somewhere to write, and nothing ever blocks.
Under `ray job submit` nothing is redirected, because the output of the driver is the job's log.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.text import Text

from errata.home import home

PIPE_WIDTH = 120  # a console over a pipe would wrap tables to 80 columns and cut words
PERIOD_S = 0.02
CHUNK_BYTES = 2**20
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets this variable for the driver of a submitted job
COLOUR = r"(?:\x1b\[[\d;]*m)*"
FORWARDED = rf"{COLOUR}\([^()]*\bpid=\d+[^()]*\){COLOUR} "  # what Ray puts before a worker's line

_open: list[Terminal] = []


def console() -> Console:
    """Return the console of the open terminal, or one on standard output. Logged lines of speakers are shown first."""
    if _open:
        _open[-1].show_new_lines()
        return _open[-1].console
    return _console_on(sys.stdout)


def log_only(line: str) -> None:
    """Write a line to the log of the open terminal, to order the frameworks' lines there."""
    if _open and _open[-1].log is not None:
        os.write(1, f"{line}\n".encode())


def is_ray_job() -> bool:
    """Return True in the driver of a job that was submitted to a Ray cluster."""
    return RAY_JOB in os.environ


class Terminal:
    """Context manager: shows the lines of `speakers` (by default those of `name`), and logs everything.

    Afterwards both descriptors are as before. `log` is the file, or None where nothing is redirected. Raises `OSError` if the
    file cannot be made.
    """

    def __init__(self, name: str, speakers: Sequence[str] = (), folder: Path | None = None) -> None:
        self.name = name
        self.log: Path | None = None
        self._folder = folder or home() / "logs"
        names = "|".join(map(re.escape, speakers or (name,)))
        self._own = re.compile(rf"(?:{FORWARDED})?((?:{names})(?:\.py)?: .*)")
        self._lock, self._closing = threading.RLock(), threading.Event()
        self._rest = b""

    def __enter__(self) -> Terminal:
        if is_ray_job():
            self.console, self._errors = _console_on(sys.stdout), _console_on(sys.stderr)
        else:
            self._redirect()
        _open.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _open.remove(self)
        if self.log is None:
            return
        if error is not None and not isinstance(error, SystemExit):
            self.log_traceback(error)
        self._closing.set()
        self._follower.join()
        self.show_new_lines()
        sys.stderr.flush()
        for saved, standard in zip(self._saved, (1, 2), strict=True):
            os.dup2(saved, standard)
            os.close(saved)
        self._reader.close()

    def fail(self, reason: str) -> None:
        """Show why the command ends, in one red line on standard error, with the path of the log."""
        self.show_new_lines()
        line = reason.strip().partition("\n")[0]
        where = f"; the whole log: {self.log}" if self.log else ""
        self._errors.print(Text(f"{line}{where}", "red"), soft_wrap=True)

    def log_traceback(self, error: BaseException) -> None:
        if self.log is not None:
            os.write(2, "".join(traceback.format_exception(error)).encode(errors="replace"))

    def show_new_lines(self) -> None:
        """Show the speakers' lines that were logged since the last call."""
        if self.log is None:
            return
        with self._lock:
            sys.stdout.flush()
            while chunk := self._reader.read(CHUNK_BYTES):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    if found := self._own.fullmatch(line.decode(errors="replace").rstrip("\r")):
                        self.console.print(Text(found[1]), soft_wrap=True)

    def _redirect(self) -> None:
        now = time.strftime("%Y%m%d-%H%M%S")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.log = self._folder / f"{self.name}-{now}-{os.getpid()}.log"
        target = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = os.dup(1), os.dup(2)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.close(target)
        self._reader = FileIO(self.log)
        self.console, self._errors = (_console_on(_writer(descriptor)) for descriptor in self._saved)
        self._follower = threading.Thread(target=self._follow, name="terminal", daemon=True)
        self._follower.start()

    def _follow(self) -> None:
        while not self._closing.wait(PERIOD_S):
            self.show_new_lines()


def _writer(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", errors="replace", closefd=False)


def _console_on(file: TextIO) -> Console:
    if not file.isatty():
        return Console(file=file, width=PIPE_WIDTH)
    return Console(file=file, width=os.get_terminal_size(file.fileno()).columns or None)
