"""A Ray cluster of several nodes on one machine, each a `ray start` that can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from errata.local.services import LOOPBACK
from tests.e2e.test_registry import free_port

BIN = Path(sys.executable).parent
STORE_BYTES = 100_000_000


class Cluster:
    """A cluster whose first node is the head with the dashboard, which accepts jobs.

    `environment` is added to that of jobs and workers. `folder` must be a short path, because Ray makes sockets in it.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.port, self.dashboard_port = folder, free_port(), free_port()
        self.environment = {**os.environ, **environment, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
        self.environment["RAY_worker_niceness"] = "0"  # Ray's default of 15 would starve the workers on a busy machine.
        for name in ("RAY_ADDRESS", *LOOPBACK):  # The latter would admit no second node.
            self.environment.pop(name, None)
        self.nodes: list[psutil.Process] = []

    def add_node(self) -> None:
        """Start a node and wait until it has joined."""
        index = len(self.nodes)
        where = [f"--address=127.0.0.1:{self.port}"]
        if index == 0:
            where = ["--head", f"--port={self.port}", f"--ray-client-server-port={free_port()}"]
            where += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}"]
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", *where]
        # With one folder for all, each node would send all nodes' logs to the driver.
        command += [f"--temp-dir={self.folder}/{index}", f"--dashboard-agent-listen-port={free_port()}"]
        command += ["--num-cpus=1", f"--object-store-memory={STORE_BYTES}"]
        output = self.folder / f"node-{index}.log"
        with output.open("wb") as log:
            node = psutil.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True)
        self.nodes.append(node)
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in output.read_text():
            assert node.is_running() and time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)

    def submit(self, *command: str) -> subprocess.Popen[str]:
        """Submit the repository as a job; its output is in the process's stdout, line by line."""
        submit = [str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{self.dashboard_port}"]
        # Ray's clean-up needs the address if the machine runs another cluster.
        variables = json.dumps({"env_vars": {"RAY_ADDRESS": f"127.0.0.1:{self.port}"}})
        submit += ["--runtime-env-json", variables, "--working-dir", ".", "--", *command]
        root = Path(__file__).parents[2]
        out = subprocess.PIPE
        return subprocess.Popen(submit, cwd=root, env=self.environment, text=True, stdout=out, stderr=subprocess.STDOUT)

    def node_of(self, pid: int) -> psutil.Process:
        return next(node for node in self.nodes if pid in {process.pid for process in family(node)})

    def kill(self, node: psutil.Process) -> None:
        """Kill all processes of a node with SIGKILL, as when a machine is lost."""
        processes = family(node)
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=20)

    def stop(self) -> None:
        for node in reversed(self.nodes):
            self.kill(node)


def family(process: psutil.Process) -> list[psutil.Process]:
    """List a process and its descendants; none if it has ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
