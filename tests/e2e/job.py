"""Jobs as processes, in a Ray of their own or in a cluster: started, read line by line, and killed; where Ray listens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
LONGEST_S = 900.0


def started(home: Path, *command: str, cluster: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a job in its own Ray, or in that of the environment `cluster`.

    It is killed after `LONGEST_S`, so that a reader of its lines never blocks.
    """
    environment = dict(os.environ)
    environment.pop("RAY_ADDRESS", None)
    environment |= {**(cluster or {}), "ERRATA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    job = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    ended_after(LONGEST_S, job)
    return job


def ended_after(seconds: float, job: subprocess.Popen[str]) -> None:
    """Kill a job that runs too long."""
    timer = threading.Timer(seconds, job.kill)
    timer.daemon = True
    timer.start()


def output_until_killed(home: Path, says: str, *command: str) -> str:
    """Output of a job up to a line that contains `says`; then its driver is killed with SIGKILL."""
    job, seen = started(home, *command), []
    assert job.stdout is not None
    for line in job.stdout:
        seen.append(line)
        if says in line:
            job.send_signal(signal.SIGKILL)
            break
    assert job.wait(timeout=60) == -signal.SIGKILL, "the job ended by itself: " + "".join(seen[-40:])
    return "".join(seen)


def lines_of(home: Path, *command: str, cluster: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the output of a job line by line; fails with its last lines if the job fails. See `started`."""
    job = started(home, *command, cluster=cluster)
    seen = []
    try:
        assert job.stdout is not None
        for line in job.stdout:
            seen.append(line)
            yield line
        assert job.wait(timeout=60) == 0, "".join(seen[-60:])
    finally:
        if job.poll() is None:
            job.send_signal(signal.SIGINT)
            job.wait(timeout=60)


def log_of(home: Path, job: str) -> str:
    """Read the newest log of a job, which has the frameworks' lines, too."""
    return max((home / "logs").glob(f"{job}-*.log"), key=lambda path: path.stat().st_mtime).read_text()


def outward(process: psutil.Process) -> list[str]:
    """List where a process and its descendants listen to other machines, once Ray's parts listen."""
    deadline, listening = time.monotonic() + 60, set[str]()
    while not {"gcs_server", "raylet"} <= listening:
        assert time.monotonic() < deadline, listening
        time.sleep(0.5)
        names = {each.pid: each.name() for each in (process, *process.children(recursive=True))}
        found = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in names]
        listening = {names[c.pid] for c in found}
    return [f"{names[c.pid]} on {c.laddr}" for c in found if c.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]
