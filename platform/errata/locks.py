"""A lock file that one process holds at a time, with the holder's process id in it."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path

from filelock import lock_descriptor

# Polled, because the kernel's blocking wait has no time limit and filelock's own polls at this interval, too.
POLL_S = 0.05


class Held(RuntimeError):
    """The lock is held elsewhere. `pid` is the holder's process id, None if the file does not name one."""

    def __init__(self, path: str, pid: int | None) -> None:
        super().__init__(path, pid)
        self.path, self.pid = path, pid

    def __str__(self) -> str:
        return f"{self.path} is held by {'another process' if self.pid is None else f'process {self.pid}'}"


def hold(path: Path, wait_s: float = 0.0) -> FileIO:
    """Lock `path` until the returned file is closed or this process dies.

    Waits up to `wait_s` seconds for the lock, `math.inf` for any time, and raises `Held` after that. The lock file stays when
    the lock is released: if it were removed, two processes could hold locks on two files of one name.
    """
    with ExitStack() as unless_locked:
        file = unless_locked.enter_context(FileIO(path, "a+"))
        deadline = time.monotonic() + wait_s
        while not lock_descriptor(file.fileno(), blocking=False):
            if time.monotonic() >= deadline:
                raise Held(str(path), _pid_in(file))
            time.sleep(POLL_S)
        with suppress(OSError):  # The lock is held even if a full disk leaves no room for the process id.
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        unless_locked.pop_all()
    return file


def _pid_in(file: FileIO) -> int | None:
    file.seek(0)
    text = file.read(32).strip()
    return int(text) if text.isdigit() else None
