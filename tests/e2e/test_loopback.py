"""What Ray starts on one machine hears nobody from outside: whoever reaches its ports can run anything."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from errata.local.services import LOOPBACK, LocalServices

ROOT = Path(__file__).parents[2]
JOB = "from jobs.workers import start_ray; start_ray(); print('started', flush=True); input()"


def outward(process: psutil.Process) -> list[str]:
    """Where a process and all that it started listen to other machines, once Ray's parts do listen."""
    deadline, heard = time.monotonic() + 60, set[str]()
    while not {"gcs_server", "raylet"} <= heard:
        assert time.monotonic() < deadline, heard
        time.sleep(0.5)
        names = {each.pid: each.name() for each in (process, *process.children(recursive=True))}
        found = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in names]
        heard = {names[c.pid] for c in found}
    return [f"{names[c.pid]} on {c.laddr}" for c in found if c.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]


@pytest.fixture
def unprepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell where nobody has set anything."""
    for name in (*LOOPBACK, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_a_stacks_ray(unprepared: None, tmp_path: Path) -> None:
    with LocalServices(tmp_path) as stack:
        stack.start_ray()
        assert outward(psutil.Process(stack.processes["ray"].pid)) == []


def test_a_ray_of_a_jobs_own(unprepared: None) -> None:
    pipe = subprocess.PIPE
    job = subprocess.Popen([sys.executable, "-c", JOB], cwd=ROOT, env=os.environ, text=True, stdin=pipe, stdout=pipe)
    try:
        assert job.stdout is not None and any("started" in line for line in job.stdout)
        assert outward(psutil.Process(job.pid)) == []
    finally:
        job.communicate("\n", timeout=60)
