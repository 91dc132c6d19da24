"""Ray on one machine listens on loopback alone, because a client that reaches its ports can run any code.

test_jobs.py has the Ray of the local services, on which its jobs run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from errata.local.services import LOOPBACK, LocalServices
from tests.e2e.job import outward

ROOT = Path(__file__).parents[2]
JOB = "from jobs.workers import start_ray; start_ray(); print('started', flush=True); input()"


@pytest.fixture
def unprepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove Ray's variables, as in a fresh shell."""
    for name in (*LOOPBACK, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_the_ray_of_a_job_listens_on_loopback(unprepared: None) -> None:
    pipe = subprocess.PIPE
    job = subprocess.Popen([sys.executable, "-c", JOB], cwd=ROOT, env=os.environ, text=True, stdin=pipe, stdout=pipe)
    try:
        assert job.stdout is not None and any("started" in line for line in job.stdout)
        assert outward(psutil.Process(job.pid)) == []
    finally:
        job.communicate("\n", timeout=60)


@pytest.mark.long  # tests/unit/local/test_services.py has what Ray is started with.
def test_a_ray_beside_a_service_for_other_machines_asks_for_a_token(unprepared: None, tmp_path: Path) -> None:
    connect = "import ray; ray.init(log_to_driver=False); print(ray.get(ray.remote(lambda: 6 * 7).remote()))"
    with LocalServices(tmp_path, http_host="0.0.0.0", with_jobs=False) as services:
        services.start_ray()
        outward(psutil.Process(services.processes["ray"].pid))  # Waits until it listens.
        stranger = {name: value for name, value in services.environment.items() if name != "RAY_AUTH_TOKEN"}
        stranger |= {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
        for environment, is_let_in in ((services.environment, True), (stranger, False)):
            command = [sys.executable, "-c", connect]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert (done.returncode == 0 and "42" in done.stdout) == is_let_in, done.stderr[-2000:]
