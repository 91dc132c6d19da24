"""The service of a test session, whose number of replicas can be changed while it runs."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any

import httpx
import yaml

from errata.local.services import BIN
from tests.chaos.service import Service
from tests.e2e.toy import FACTS


@dataclass
class ScalableService(Service):
    """A service that is started by `serve run` as an operator does, and after a power failure deployed from a file.

    Only what was deployed from a file can be scaled while it runs.
    """

    is_from_file: bool = False

    def start(self) -> None:
        if not self.is_from_file:
            super().start()
            return
        self.start_cluster()
        self.stack.wait_ray()
        self.scale(self.replicas)

    def restart_from_file(self) -> None:
        self.kill_node()
        self.is_from_file = True
        self.start()
        self.until_whole()

    def scale(self, replicas: int) -> None:
        self.replicas = replicas
        settings = {**self.settings, "threads": 1}  # Two engines share two cores.
        application: dict[str, Any] = {
            "name": "errata",
            "route_prefix": "/",
            "import_path": "serving.app:build",
            "args": settings,
        }
        application["deployments"] = [{"name": "Generator", "num_replicas": replicas}]
        http = {"host": "127.0.0.1", "port": self.http_port}
        path = self.directory / "serve.yaml"
        path.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
        command = [str(BIN / "serve"), "deploy", "--address", self.stack.jobs_url, str(path)]
        subprocess.run(command, env=self.stack.environment, check=True, capture_output=True, timeout=60)

    def need(self, replicas: int) -> None:
        """Scale the service to so many replicas, whichever tests ran before, and wait until it is whole."""
        if not self.is_from_file:
            self.restart_from_file()
        if self.replicas != replicas:
            self.scale(replicas)
        self.until_whole()

    # -- requests -----------------------------------------------------------------------------------------------------

    def edit(self, number: int, target: str, key: str | None = None) -> httpx.Response:
        body = {"edits": [{"prompt": FACTS[number][0], "target": target}], "wait": True}
        return self.http.post("/v1/edits", json=body, headers={} if key is None else {"Idempotency-Key": key})

    def edited(self, number: int, target: str) -> int:
        """Post an edit until it is accepted; returns its version."""
        deadline, key = time.monotonic() + 60, os.urandom(8).hex()
        while (answer := self.edit(number, target, key)).status_code != 200:
            assert answer.status_code in (500, 503) and time.monotonic() < deadline, answer.text
            time.sleep(0.5)
        return int(answer.json()["version"])

    def complete(self, prompt: str, at_least: int) -> httpx.Response:
        body = {"model": "errata", "prompt": prompt, "max_tokens": 1, "temperature": 0}
        return self.http.post("/v1/completions", json=body, headers={"X-Errata-At-Least": str(at_least)})

    def rollback(self, version: int) -> None:
        self.http.post("/v1/rollback", json={"version": version}).raise_for_status()

    def replicas_by_name(self) -> dict[str, dict[str, Any]]:
        return {replica["replica"]: replica for replica in self.status()["replicas"]}

    def pids(self) -> dict[str, int]:
        return {name: replica["pid"] for name, replica in self.replicas_by_name().items()}
