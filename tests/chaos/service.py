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

from errata.access_keys import add_key
from errata.ledger import Ledger
from errata.ledger.journal_copy import journal_of
from errata.local.services import LocalServices, free_port
from tests.chaos.logs import leaks
from tests.chaos.loop_disk import LoopDisk
from tests.e2e.toy import make_checkpoint

ROOT = Path(__file__).parents[2]
CLOCK = Path(__file__).parent / "clock"
EDITOR = "tests.e2e.toy:Toy"
STATUS_S = 120.0
WHOLE_S = 600.0  # Two engines start in half a minute, and in minutes where other programs have the cores.


@dataclass
class Service:
    """One machine with the service. After `kill_node`, `start` finds the ledger, the journal and MLflow's files again.

    Ledger and journal are on `disk` if there is one. `secrets` are texts that no log may hold: the logs are read before they
    are removed, and `leaked` has what was found. With `with_keys`, callers need a key, of which `http` has one.
    """

    directory: Path
    with_mlflow: bool = True
    with_jobs: bool = True
    replicas: int = 1
    with_keys: bool = False
    disk: LoopDisk | None = None
    secrets: tuple[str, ...] = ()
    leaked: list[str] = field(default_factory=list)
    http_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.clock_path = self.directory / "clock"
        # The editor is a module of the tests, and the clock of the service's processes can be moved.
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (CLOCK, ROOT, ROOT / "platform")))
        os.environ["ERRATA_CHAOS_CLOCK"] = str(self.clock_path)
        self.model = make_checkpoint(self.directory / "model")
        self.ledger_path = (self.disk.folder if self.disk else self.directory) / "ledger"
        self.headers: dict[str, str] = {}
        if self.with_keys:
            bearer = add_key(self.directory / "keys.json", "chaos", "admin")
            self.headers, self.secrets = {"Authorization": f"Bearer {bearer}"}, (*self.secrets, bearer)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", headers=self.headers, timeout=30)

    @property
    def journal_path(self) -> Path:
        return journal_of(self.ledger_path)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `serving.app:build`."""
        settings: dict[str, Any] = {"model": str(self.model), "ledger": str(self.ledger_path), "editor": EDITOR, "max_batch": 4}
        settings["guard"] = "strict=false"  # The toy writes the first word of an answer alone.
        settings |= {"keys": str(self.directory / "keys.json")} if self.with_keys else {}
        return settings | ({"mlflow": self.stack.mlflow_url} if self.with_mlflow else {})

    def start(self) -> None:
        self.start_cluster()
        self.stack.start_serve(**self.settings, replicas=self.replicas)

    def start_cluster(self) -> None:
        """Start MLflow and Ray without the application."""
        ports = {"http_port": self.http_port, "mlflow_port": self.mlflow_port}
        self.stack = LocalServices(self.directory / "stack", with_jobs=self.with_jobs, **ports)
        if self.with_mlflow:
            self.stack.start_mlflow()
        self.stack.start_ray()

    def stop(self) -> None:
        self._stop_stack()
        self.http.close()
        if self.disk is not None:
            self.disk.unmount()

    def _stop_stack(self) -> None:
        """Stop what runs, and look into its logs, which Ray's session has in a folder that is removed here."""
        folders = [self.stack.directory, *([self.stack.ray_dir] if self.stack.ray_dir is not None else [])]
        if self.secrets:
            self.leaked += leaks(folders, self.secrets)
        self.stack.stop()

    def move_clock(self, by_s: float) -> None:
        """Move the clock of the service's processes."""
        self.clock_path.write_text(str(by_s))

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

    def until_whole(self, timeout_s: float = WHOLE_S) -> float:
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
        return psutil.Process(self._full_status()["worker"]["pid"])

    def _full_status(self) -> dict[str, Any]:
        """Ask for the status until it has all processes; a replica that is slow is missing in it."""
        deadline = time.monotonic() + STATUS_S
        while True:
            with contextlib.suppress(httpx.HTTPError, KeyError):
                status = self.status()
                if "pid" in status["worker"] and len(status["replicas"]) == self.replicas:
                    return status
            if time.monotonic() > deadline:
                raise AssertionError(f"no status with all processes came within {STATUS_S:.0f} s")
            time.sleep(0.1)

    def replica_processes(self) -> list[psutil.Process]:
        return [psutil.Process(replica["pid"]) for replica in self._full_status()["replicas"]]

    def engine_of(self, replica: int) -> psutil.Process:
        """Find the engine of a replica: its child process that uses most memory."""
        return max(psutil.Process(replica).children(recursive=True), key=lambda child: child.memory_info().rss)

    def gateway(self) -> psutil.Process:
        """Find Serve's HTTP proxy process."""
        return self._actor("ProxyActor")

    def controller(self) -> psutil.Process:
        """Find Serve's controller process."""
        return self._actor("ServeController")

    def restart_controller(self) -> None:
        """Kill Serve's controller and wait for the one that Ray starts in its place."""
        victim = self.controller()
        kill(victim)
        deadline = time.monotonic() + STATUS_S
        while time.monotonic() < deadline:
            with contextlib.suppress(StopIteration, psutil.NoSuchProcess):
                if self.controller().pid != victim.pid:
                    return
            time.sleep(0.2)
        raise AssertionError(f"no new controller came within {STATUS_S:.0f} s")

    def _actor(self, name: str) -> psutil.Process:
        return next(child for child in self._descendants("ray") if name in " ".join(child.cmdline()))

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
        self._stop_stack()  # Reaps the processes and removes Ray's session folder.

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
def full_disk(process: psutil.Process, num_bytes: int) -> Iterator[None]:
    """Make every write of a process beyond so many bytes of a file fail, as on a full disk."""
    soft, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, hard))
