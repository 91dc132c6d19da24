"""One process at a time: a file that is locked while its holder lives, with the holder's process id in it."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path

POLL_S = 0.05


class Held(RuntimeError):
    """Another one has the lock; `pid` is its process, None if it has not said so yet."""

    def __init__(self, path: str, pid: int | None) -> None:
        super().__init__(path, pid)
        self.path, self.pid = path, pid

    def __str__(self) -> str:
        return f"{self.path} is held by {'another process' if self.pid is None else f'process {self.pid}'}"


def hold(path: Path, wait_s: float = 0.0) -> FileIO:
    """Lock `path` until what is returned is closed, or this process dies; waits up to `wait_s` for it. Raises `Held`.

    The file stays when it is let go: were it removed, two could hold a lock on two files of one name.
    """
    with ExitStack() as unless_locked:
        file = unless_locked.enter_context(FileIO(path, "a+"))
        deadline = time.monotonic() + wait_s
        while not _is_locked(file):
            if time.monotonic() >= deadline:
                raise Held(str(path), _pid_in(file))
            time.sleep(POLL_S)
        with suppress(OSError):  # on a full disk it is locked all the same
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        unless_locked.pop_all()
    return file


def _is_locked(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid_in(file: FileIO) -> int | None:
    file.seek(0)
    text = file.read(32).strip()
    return int(text) if text.isdigit() else None
