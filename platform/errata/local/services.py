"""The services of one machine as child processes: Ray, MLflow and the Serve application.

They are started by their commands and stopped by process group, so that no other process is touched. All listen on 127.0.0.1;
only the application can be given another address. Each writes to a log file of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from errata.access_keys import is_loopback

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
    "RAY_worker_niceness": "0",  # By default 15: whatever else the machine runs, MLflow too, would go before the engines.
    "RAY_prestart_worker_first_driver": "0",  # Each deployment has an environment of its own, so spare workers stay unused.
}
MLFLOW_NICE = 10  # The mirror yields to the engines on the same cores, above all while they start.


# A process that ends leaves nothing but its log, and Ray Serve gives the error of a replica as the text of a `RuntimeError`
# without a code, so the reason is searched for there. It is only shown: nothing is decided by it.
#
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
    """Services that log to `directory`. Use as a context manager, or call `stop`.

    `with_jobs` starts Ray's dashboard, which takes jobs (`run_job`) and `serve deploy`. A service alone starts sooner
    without it.
    """

    directory: Path
    http_port: int = 8000
    http_host: str = "127.0.0.1"
    with_jobs: bool = True
    mlflow_port: int = field(default_factory=free_port)
    ray_port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ray_token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
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
        found = {**os.environ, **ENVIRONMENT, "PATH": path, "RAY_ADDRESS": f"127.0.0.1:{self.ray_port}"}
        # Beyond this machine Ray asks for a token, too: should one of its ports be reached in spite of 127.0.0.1 (by a proxy, a
        # tunnel, a container's network), every caller could run any code.
        return found if is_loopback(self.http_host) else found | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.ray_token}

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
        """Start Ray without waiting for it; see `wait_ray`. `start_serve` waits by itself."""
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
        options += [f"--include-dashboard={str(self.with_jobs).lower()}"]
        self.start("ray", str(BIN / "ray"), "start", "--head", "--block", *ports, *options)

    def wait_ray(self) -> None:
        """Wait until Ray takes jobs; `with_jobs` must be set."""
        self.wait("ray", f"{self.jobs_url}/api/version")

    def start_mlflow(self) -> None:
        """Start MLflow's server without waiting for it; see `wait_mlflow`."""
        home = self.directory / "mlflow"
        home.mkdir(exist_ok=True)
        options = ["--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--artifacts-destination", str(home / "artifacts")]
        options += ["--host", "127.0.0.1", "--port", str(self.mlflow_port), "--workers", "1"]
        self.start("mlflow", str(BIN / "mlflow"), "server", *options)
        pid = self.processes["mlflow"].pid
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, pid) + MLFLOW_NICE))

    def wait_mlflow(self) -> None:
        self.wait("mlflow", f"{self.mlflow_url}/health")

    def start_serve(self, **settings: object) -> None:
        """Start Serve with the application on Ray without waiting for it; see `wait_serve`.

        Ray may be started just before: the process imports what it needs and then waits for Ray.
        """
        pairs = [f"{name}={value}" for name, value in settings.items()]
        self.start("serve", sys.executable, "-m", "serving.start", self.http_host, str(self.http_port), *pairs)

    def wait_serve(self, timeout_s: float = 900.0) -> None:  # a large model is compiled first
        self.wait("serve", f"{self.url}/health", timeout_s, needs=("ray",))

    def run_job(self, *command: str) -> None:
        """Submit a Ray job from the current folder and print its log. Raises `ServiceFailed` if it fails."""
        self.wait_ray()
        submit = [str(BIN / "ray"), "job", "submit", "--address", self.jobs_url, "--working-dir", ".", "--", *command]
        if subprocess.run(submit, env=self.environment, check=False).returncode:
            raise ServiceFailed(f"the job failed: {' '.join(command)}")

    def wait(self, name: str, url: str, timeout_s: float = 120.0, needs: Sequence[str] = ()) -> None:
        """Wait until the service answers. Raises `ServiceFailed` if it, or one that it `needs`, ends before."""
        deadline = time.monotonic() + timeout_s
        with httpx.Client(timeout=5) as client:  # One for all tries: each reads the certificates for 50 ms of a core.
            while time.monotonic() < deadline:
                for one in (*needs, name):
                    if one in self.processes and self.has_ended(one):
                        raise self.failure(one, f"ended with exit code {self.processes[one].returncode}")
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(url).is_success:
                        return
                time.sleep(0.1)
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
