"""The service under test, as an operator starts it: a Ray cluster, Serve, MLflow, each a process that can be killed."""

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
    """One machine with the service on it. `start` again after `kill_node`: the ledger, the journal and MLflow's files stay."""

    directory: Path
    with_mlflow: bool = True
    replicas: int = 1
    http_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        os.environ["PYTHONPATH"] = str(ROOT)  # for the editor that stands beside the tests
        self.model = make_checkpoint(self.directory / "model")
        self.ledger_path = self.directory / "ledger"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=30)

    def start(self) -> None:
        self.stack = LocalServices(self.directory / "stack", http_port=self.http_port, mlflow_port=self.mlflow_port)
        if self.with_mlflow:
            self.stack.start_mlflow()
        self.stack.start_ray()
        settings: dict[str, Any] = {"model": self.model, "ledger": self.ledger_path, "editor": EDITOR, "max_batch": 4}
        if self.with_mlflow:
            settings["mlflow"] = self.stack.mlflow_url
        self.stack.start_serve(**settings, replicas=self.replicas)

    def stop(self) -> None:
        self.stack.stop()
        self.http.close()

    # -- what is seen from outside ------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        return Ledger.open(self.ledger_path)

    def status(self) -> dict[str, Any]:
        return dict(self.http.get("/v1/status").raise_for_status().json())

    def is_whole(self) -> bool:
        """Ready, every replica at the ledger's head and fingerprint, nothing waiting."""
        if not self.http.get("/ready").is_success:
            return False
        status, ledger = self.status(), self.ledger()
        head = ledger.version(ledger.head)
        served = [(replica["version"], replica["fingerprint"], replica["intact"]) for replica in status["replicas"]]
        return served == [(head.number, head.fingerprint, True)] * self.replicas and "pid" in status["worker"]

    def until_whole(self, timeout_s: float = 240.0) -> float:
        """Seconds until it is whole. Raises `AssertionError` with the last that was seen."""
        begin, seen = time.monotonic(), "nothing"
        while time.monotonic() - begin < timeout_s:
            try:
                if self.is_whole():
                    return time.monotonic() - begin
                seen = str(self.status())
            except (httpx.HTTPError, KeyError, ValueError) as fault:
                seen = f"{type(fault).__name__}: {fault}"
            time.sleep(0.1)
        raise AssertionError(f"not whole after {timeout_s} s: {seen}")

    # -- its processes ------------------------------------------------------------------------------------------------

    def worker(self) -> psutil.Process:
        return psutil.Process(self.status()["worker"]["pid"])

    def replica(self) -> psutil.Process:
        return psutil.Process(self.status()["replicas"][0]["pid"])

    def engine(self) -> psutil.Process:
        return self.engine_of(self.replica().pid)

    def engine_of(self, replica: int) -> psutil.Process:
        """The largest child of that process."""
        return max(psutil.Process(replica).children(recursive=True), key=lambda child: child.memory_info().rss)

    def gateway(self) -> psutil.Process:
        """Serve's HTTP proxy."""
        return next(child for child in self._descendants("ray") if "ProxyActor" in " ".join(child.cmdline()))

    def _descendants(self, name: str) -> list[psutil.Process]:
        process = self.stack.processes.get(name)
        try:
            return [] if process is None else psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill_node(self) -> None:
        """Everything of it at once, without a word: as when the power goes."""
        victims = [child for name in self.stack.processes for child in self._descendants(name)]
        victims += [psutil.Process(process.pid) for process in self.stack.processes.values() if process.poll() is None]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self.stack.stop()  # reaps them, and removes the session's folder

    def kill_mlflow(self) -> None:
        process = self.stack.processes.pop("mlflow")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill(process: psutil.Process) -> None:
    """SIGKILL, and wait until it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
        psutil.wait_procs([process], timeout=10)


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def full_disk(process: psutil.Process) -> Iterator[None]:
    """The kernel lets the process write to no file: every attempt fails, as on a disk without room."""
    soft, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, hard))
