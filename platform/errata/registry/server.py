"""A small MLflow server on this machine, for tests and trials. Imports no mlflow: the server is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from errata.registry.cursor import RegistryUnavailable


def start_server(directory: str | Path, port: int, wait_s: float = 120.0) -> subprocess.Popen[bytes]:
    """An MLflow server on 127.0.0.1 that keeps all it knows in `directory`; returns once it is healthy.

    One worker and no job runner: a quarter of the default's memory. Its output is in `directory`/server.log. Raises
    `RegistryUnavailable` if it ends or is not healthy in `wait_s` seconds. It may have child processes, in its own group.
    """
    directory = Path(directory).resolve()
    (directory / "artifacts").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{directory}/mlflow.db"]
    command += ["--artifacts-destination", str(directory / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (directory / "server.log").open("ab") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=directory, start_new_session=True)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and server.poll() is None:
        if _is_healthy(port):
            return server
        time.sleep(0.2)
    stop_server(server)
    raise RegistryUnavailable(f"the MLflow server on port {port} did not start; see {directory}/server.log")


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers."""
    if server.poll() is None:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
