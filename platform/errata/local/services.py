"""The services of one machine as child processes: Ray, MLflow and the Serve application, on 127.0.0.1 unless the last is told.

Started by command line, as a user would; stopped by process group, so that nothing of anybody else's is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

BIN = Path(sys.executable).parent
# Told 127.0.0.1, Ray still listens on the machine's outward address, where whoever reaches it can run anything; with this, its
# own switch for machines that are no cluster, it does not. Every process that is to find such a Ray needs it, too.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
ENVIRONMENT = LOOPBACK | {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


class ServiceFailed(RuntimeError):
    """A service ended or did not answer in time; the message has the end of its log."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LocalServices:
    """Services whose logs are in `directory`. Use as a context manager, or call `stop`."""

    directory: Path
    http_port: int = 8000
    http_host: str = "127.0.0.1"
    mlflow_port: int = field(default_factory=free_port)
    ray_port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ray_dir: Path | None = None

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LocalServices:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, **ENVIRONMENT, "PATH": path, "RAY_ADDRESS": f"127.0.0.1:{self.ray_port}"}

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def jobs_url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def url(self) -> str:
        """For clients on this machine: an address that stands for all of a machine's is none to connect to."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.http_host, self.http_host)
        return f"http://[{host}]:{self.http_port}" if ":" in host else f"http://{host}:{self.http_port}"

    def start(self, name: str, *command: str) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
            )

    def start_ray(self) -> None:
        # Ray's sockets need a short path.
        self.ray_dir = Path(tempfile.mkdtemp(prefix="errata-ray-", dir="/tmp"))
        ports = [
            f"--port={self.ray_port}",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={free_port()}",
        ]
        ports += [f"--dashboard-agent-listen-port={free_port()}"]
        options = [
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
            "--disable-usage-stats",
            f"--temp-dir={self.ray_dir}",
        ]
        # Declared, not counted: a service, two trainers and their controller share two cores.
        options += [f"--num-cpus={max(4, len(os.sched_getaffinity(0)))}"]
        self.start("ray", str(BIN / "ray"), "start", "--head", "--block", *ports, *options)
        self.wait("ray", f"{self.jobs_url}/api/version")

    def start_mlflow(self) -> None:
        """Returns at once; `wait_mlflow` waits."""
        home = self.directory / "mlflow"
        home.mkdir(exist_ok=True)
        options = ["--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--artifacts-destination", str(home / "artifacts")]
        options += ["--host", "127.0.0.1", "--port", str(self.mlflow_port), "--workers", "1"]
        self.start("mlflow", str(BIN / "mlflow"), "server", *options)

    def wait_mlflow(self) -> None:
        self.wait("mlflow", f"{self.mlflow_url}/health")

    def start_serve(self, **settings: object) -> None:
        """`serve run serving.app:build name=value …`; `wait_serve` waits."""
        listen = ["--http-host", self.http_host, "--http-port", str(self.http_port)]
        started = subprocess.run([str(BIN / "serve"), "start", *listen], env=self.environment, check=False, capture_output=True)
        if started.returncode:
            said = (started.stdout + started.stderr).decode(errors="replace")[-3000:]
            raise ServiceFailed(f"Serve cannot listen on {self.http_host}, port {self.http_port}:\n{said}")
        pairs = [f"{name}={value}" for name, value in settings.items()]
        command = [str(BIN / "serve"), "run", "--route-prefix=/", "--name=errata", "serving.app:build", *pairs]
        self.start("serve", *command)

    def wait_serve(self, timeout_s: float = 900.0) -> None:  # a large model is compiled first
        self.wait("serve", f"{self.url}/health", timeout_s)

    def run_job(self, *command: str) -> None:
        """`ray job submit` from the current folder, its log passed through. Raises `ServiceFailed` if the job fails."""
        submit = [str(BIN / "ray"), "job", "submit", "--address", self.jobs_url, "--working-dir", ".", "--", *command]
        if subprocess.run(submit, env=self.environment, check=False).returncode:
            raise ServiceFailed(f"the job failed: {' '.join(command)}")

    def wait(self, name: str, url: str, timeout_s: float = 120.0) -> None:
        process, deadline = self.processes[name], time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServiceFailed(f"{name} ended with code {process.returncode}:\n{self.log_end(name)}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5).is_success:
                    return
            time.sleep(0.3)
        raise ServiceFailed(f"{name} did not answer {url} within {timeout_s:.0f} s:\n{self.log_end(name)}")

    def has_ended(self, name: str) -> bool:
        return self.processes[name].poll() is not None

    def log_end(self, name: str, num_characters: int = 3000) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")[-num_characters:]

    def stop(self) -> None:
        """Ask, wait, then end; in reverse order of starting."""
        for process in reversed(list(self.processes.values())):
            for ask in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, ask)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                    break
        self.processes.clear()
        if self.ray_dir is not None:
            shutil.rmtree(self.ray_dir, ignore_errors=True)
