"""Lock files: waiting, the holder's process id, and release when the holder dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from errata.locks import Held, hold

HOLDER = """
import sys
from pathlib import Path
from errata.locks import hold
lock = hold(Path(sys.argv[1]))
print("holds", flush=True)
input()
"""


def test_a_waiting_process_takes_a_released_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = hold(path)
    timer = threading.Timer(0.2, first.close)
    timer.start()
    began = time.monotonic()
    second = hold(path, wait_s=30)
    assert 0.1 < time.monotonic() - began < 10 and path.read_text() == f"{os.getpid()}\n"
    second.close()
    timer.join()


@pytest.mark.parametrize(
    ("content", "who"), [(b"", "another process"), (b"\xff\xfe", "another process"), (b"7\n", "process 7")]
)
def test_the_holder_is_read_from_the_lock_file(tmp_path: Path, content: bytes, who: str) -> None:
    path = tmp_path / "lock"
    with hold(path):
        path.write_bytes(content)
        with pytest.raises(Held, match=f"is held by {who}$"):
            hold(path)


def test_a_lock_is_not_inherited(tmp_path: Path) -> None:
    """A child process may outlive the service and must not keep the next one out."""
    lock = hold(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        lock.close()
        hold(tmp_path / "lock").close()
        assert child.poll() is None, "the child must outlive the lock"
        child.communicate(b"\n")


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        with pytest.raises(Held, match=f"is held by process {holder.pid}$"):
            hold(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=10)
    hold(path).close()
