"""The service under test as an operator starts it: Ray, Serve and MLflow as processes that can be killed."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from errata.ledger import Ledger
from errata.local.services import LocalServices, free_port
from tests.e2e.toy import make_checkpoint

ROOT = Path(__file__).parents[2]
EDITOR = "tests.e2e.toy:Toy"


@dataclass
class Service:
    """One machine with the service. After `kill_node`, `start` finds the ledger, the journal and MLflow's files again."""

    directory: Path
    with_mlflow: bool = True
    replicas: int = 1
    http_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        os.environ["PYTHONPATH"] = str(ROOT)  # The editor is a module of the tests.
        self.model = make_checkpoint(self.directory / "model")
        self.ledger_path = self.directory / "ledger"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=30)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `serving.app:build`."""
        settings: dict[str, Any] = {"model": str(self.model), "ledger": str(self.ledger_path), "editor": EDITOR, "max_batch": 4}
        settings["guard"] = "strict=false"  # The toy writes the first word of an answer alone.
        return settings | ({"mlflow": self.stack.mlflow_url} if self.with_mlflow else {})

    def start(self) -> None:
        self.start_cluster()
        self.stack.start_serve(**self.settings, replicas=self.replicas)

    def start_cluster(self) -> None:
        """Start MLflow and Ray without the application."""
        self.stack = LocalServices(self.directory / "stack", http_port=self.http_port, mlflow_port=self.mlflow_port)
        if self.with_mlflow:
            self.stack.start_mlflow()
        self.stack.start_ray()

    def stop(self) -> None:
        self.stack.stop()
        self.http.close()

    # -- the view of a client -----------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        return Ledger.open(self.ledger_path)

    def status(self) -> dict[str, Any]:
        return dict(self.http.get("/v1/status").raise_for_status().json())

    def is_whole(self) -> bool:
        """Return True if the service is ready and every replica is at the ledger's head and its fingerprint."""
        if not self.http.get("/ready").is_success:
            return False
        status, ledger = self.status(), self.ledger()
        head = ledger.version(ledger.head)
        served = [(replica["version"], replica["fingerprint"], replica["intact"]) for replica in status["replicas"]]
        return served == [(head.number, head.fingerprint, True)] * self.replicas and "pid" in status["worker"]

    def until_whole(self, timeout_s: float = 240.0) -> float:
        """Wait until the service is whole; returns the seconds. Raises `AssertionError` with the last status."""
        begin, seen = time.monotonic(), "nothing"
        while time.monotonic() - begin < timeout_s:
            try:
                if self.is_whole():
                    return time.monotonic() - begin
                seen = str(self.status())
            except (httpx.HTTPError, KeyError, ValueError) as fault:
                seen = f"{type(fault).__name__}: {fault}"
            time.sleep(min(0.5, 0.1 + 0.02 * (time.monotonic() - begin)))  # Each look costs the service time to start in.
        raise AssertionError(f"not whole after {timeout_s} s: {seen}")

    # -- its processes ------------------------------------------------------------------------------------------------

    def worker(self) -> psutil.Process:
        return psutil.Process(self.status()["worker"]["pid"])

    def replica(self) -> psutil.Process:
        return psutil.Process(self.status()["replicas"][0]["pid"])

    def engine(self) -> psutil.Process:
        return self.engine_of(self.replica().pid)

    def engine_of(self, replica: int) -> psutil.Process:
        """Find the engine of a replica: its child process that uses most memory."""
        return max(psutil.Process(replica).children(recursive=True), key=lambda child: child.memory_info().rss)

    def gateway(self) -> psutil.Process:
        """Find Serve's HTTP proxy process."""
        return next(child for child in self._descendants("ray") if "ProxyActor" in " ".join(child.cmdline()))

    def _descendants(self, name: str) -> list[psutil.Process]:
        process = self.stack.processes.get(name)
        try:
            return [] if process is None else psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill_node(self) -> None:
        """Kill every process of the machine with SIGKILL, as a power failure does."""
        victims = [child for name in self.stack.processes for child in self._descendants(name)]
        victims += [psutil.Process(process.pid) for process in self.stack.processes.values() if process.poll() is None]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self.stack.stop()  # Reaps the processes and removes Ray's session folder.

    def kill_mlflow(self) -> None:
        process = self.stack.processes.pop("mlflow")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill(process: psutil.Process) -> None:
    """Kill a process with SIGKILL and wait until it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
        psutil.wait_procs([process], timeout=10)


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """Suspend a process for the block."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def full_disk(process: psutil.Process) -> Iterator[None]:
    """Make every write of a process to a file fail, as on a full disk."""
    soft, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, hard))
