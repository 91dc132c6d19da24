"""The services of one machine as child processes: Ray, MLflow and the Serve application.

They are started by their commands and stopped by process group, so that no other process is touched. All listen on 127.0.0.1;
only the application can be given another address. Each writes to a log file of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
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
# Given 127.0.0.1, Ray still listens on the machine's outward address, where anyone who connects can run any code. With this
# variable, Ray's own switch for machines that are not a cluster, it does not. Processes that connect to such a Ray need it too.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
ENVIRONMENT = LOOPBACK | {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


# The line of a log that most likely says why a process failed, such as `ValueError: no such matrix`. Ray puts the name of a
# worker before its lines: `(ServeReplica pid=7) ValueError: no such matrix`.
_ERROR = re.compile(r"^(?:\x1b\[[\d;]*m|\([^()]*\bpid=\d+[^()]*\)|\s)*((?:\w+\.)*\w*(?:Error|Exception|Failed|Exit)\b: .*)")

# Errors that only wrap the reason, which is in a line before them.
_WRAPPER = re.compile(r"Traceback \(most recent call last\)|: Deploying application ")


class ServiceFailed(RuntimeError):
    """A service that ended or did not answer in time; the message is one line with the reason and the path of the log."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LocalServices:
    """Services that log to `directory`. Use as a context manager, or call `stop`."""

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
        """Address for clients on this machine; a wildcard address is replaced, because one cannot connect to it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.http_host, self.http_host)
        return f"http://[{host}]:{self.http_port}" if ":" in host else f"http://{host}:{self.http_port}"

    def start(self, name: str, *command: str) -> None:
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
            )

    def start_ray(self) -> None:
        # The paths of Unix sockets are limited to about 100 characters.
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
        # Declared, not counted, because a service, two trainers and their controller share two cores.
        options += [f"--num-cpus={max(4, len(os.sched_getaffinity(0)))}"]
        self.start("ray", str(BIN / "ray"), "start", "--head", "--block", *ports, *options)
        self.wait("ray", f"{self.jobs_url}/api/version")

    def start_mlflow(self) -> None:
        """Start MLflow's server without waiting for it; see `wait_mlflow`."""
        home = self.directory / "mlflow"
        home.mkdir(exist_ok=True)
        options = ["--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--artifacts-destination", str(home / "artifacts")]
        options += ["--host", "127.0.0.1", "--port", str(self.mlflow_port), "--workers", "1"]
        self.start("mlflow", str(BIN / "mlflow"), "server", *options)

    def wait_mlflow(self) -> None:
        self.wait("mlflow", f"{self.mlflow_url}/health")

    def start_serve(self, **settings: object) -> None:
        """Start `serve run serving.app:build name=value …` without waiting for it; see `wait_serve`."""
        listen = ["--http-host", self.http_host, "--http-port", str(self.http_port)]
        started = subprocess.run([str(BIN / "serve"), "start", *listen], env=self.environment, check=False, capture_output=True)
        if started.returncode:
            output = started.stdout + started.stderr
            log = self.directory / "serve-start.log"
            log.write_bytes(output)
            reason = _reason_in(output.decode(errors="replace"))
            raise ServiceFailed(f"Serve cannot listen on {self.http_host}, port {self.http_port}: {reason}; its log: {log}")
        pairs = [f"{name}={value}" for name, value in settings.items()]
        command = [str(BIN / "serve"), "run", "--route-prefix=/", "--name=errata", "serving.app:build", *pairs]
        self.start("serve", *command)

    def wait_serve(self, timeout_s: float = 900.0) -> None:  # a large model is compiled first
        self.wait("serve", f"{self.url}/health", timeout_s)

    def run_job(self, *command: str) -> None:
        """Submit a Ray job from the current folder and print its log. Raises `ServiceFailed` if it fails."""
        submit = [str(BIN / "ray"), "job", "submit", "--address", self.jobs_url, "--working-dir", ".", "--", *command]
        if subprocess.run(submit, env=self.environment, check=False).returncode:
            raise ServiceFailed(f"the job failed: {' '.join(command)}")

    def wait(self, name: str, url: str, timeout_s: float = 120.0) -> None:
        process, deadline = self.processes[name], time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise self.failure(name, f"ended with exit code {process.returncode}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5).is_success:
                    return
            time.sleep(0.3)
        raise self.failure(name, f"did not answer {url} within {timeout_s:.0f} s")

    def has_ended(self, name: str) -> bool:
        return self.processes[name].poll() is not None

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def failure(self, name: str, what: str) -> ServiceFailed:
        """Make the error of a service, with the most likely reason from its log."""
        reason = _reason_in(self.log(name).read_text(errors="replace"))
        return ServiceFailed(f"{name} {what}: {reason}; its log: {self.log(name)}")

    def stop(self) -> None:
        """Terminate the services in reverse order of their start, and kill those that still run after 20 s."""
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


def _reason_in(log: str) -> str:
    """Find the last line of an error, or else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [found[1] for line in lines if (found := _ERROR.match(line)) and not _WRAPPER.search(found[1])]
    return (errors or lines or ["it printed nothing"])[-1]
