"""The record of the process that serves from a home folder: `errata serve` writes it, `errata stop` reads it.

A process is identified by its id and start time, because ids are reused. The record does not decide whether a process serves,
because two that start at the same time would both find none: the serving process holds a lock beside it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from errata.durable import replaced
from errata.locks import Held, hold

NAME = "service.json"
LOCK = "service.lock"
SAME_START_S = 1.0  # the clock may be set while the service runs


class AlreadyRunning(RuntimeError):
    """Another process serves from this folder."""


@dataclass(frozen=True)
class PidFile:
    """A serving process: id, start time in seconds since 1970, address."""

    pid: int
    started: float
    url: str

    @property
    def is_alive(self) -> bool:
        """The process exists and is not a later one with the same id."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < SAME_START_S and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def read(folder: Path) -> PidFile | None:
    """Read the record in `folder`, whose process may have ended. Raises `ValueError` for a damaged record."""
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return PidFile(int(found["pid"]), float(found["started"]), str(found["url"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} does not name the process that serves; if none does, remove the file") from None


def check_not_running(folder: Path) -> None:
    """Raise `AlreadyRunning` if the recorded process of `folder` runs, and `ValueError` for a damaged record; lock nothing."""
    found = read(folder)
    if found is not None and found.is_alive:
        raise AlreadyRunning(_advised(_serving(folder, found)))


@contextmanager
def recorded_service(folder: Path, url: str) -> Iterator[None]:
    """Record that this process serves from `folder` while the block runs. Raises `AlreadyRunning` if another does."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = hold(folder / LOCK)
    except Held as held:
        raise AlreadyRunning(_holder_of(folder, held)) from None
    path, me = folder / NAME, PidFile(os.getpid(), psutil.Process().create_time(), url)
    with lock:
        _write(path, me)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _holder_of(folder: Path, held: Held) -> str:
    found = None
    with suppress(ValueError):
        found = read(folder)
    if found is not None and found.is_alive:
        return _advised(_serving(folder, found))
    return _advised(f"a service is being started or stopped in {folder}: {held}")


def _serving(folder: Path, found: PidFile) -> str:
    return f"process {found.pid} serves from {folder} already, at {found.url}"


def _advised(holder: str) -> str:
    return f"{holder}: end it with `errata stop`, or set ERRATA_HOME to another folder"


def _write(path: Path, me: PidFile) -> None:
    with replaced(path) as file:
        file.touch(mode=0o600, exist_ok=False)
        file.write_text(json.dumps(asdict(me)), encoding="utf-8")


def stop(running: PidFile, timeout_s: float) -> bool:
    """Ask the process to end and wait; True if it ended in time. Raises `PermissionError` for another user's process."""
    if not running.is_alive:
        return True
    with suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while running.is_alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
