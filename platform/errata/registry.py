"""The ledger's mirror in MLflow, and the record of training runs: the only file that imports mlflow.

The ledger is the truth. Each version of it becomes a LoggedModel that is PENDING until whole (its files, never the full
model; its scorecard; its lineage), then READY and registered. With MLflow down nothing waits for it: `mirror` raises
`RegistryUnavailable`, and a later call goes on, in order, where the registered versions end.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.ledger import DELTA, EDITS, ENTRY, Ledger, Version

VERSION_TAG = "errata.version"
# A server that is down is found out in about a second, not after MLflow's own 4 minutes of retries.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class RegistryUnavailable(ConnectionError):
    """MLflow cannot be reached, or refused; what was mirrored stays mirrored."""


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        raise RegistryUnavailable(f"MLflow at {uri}: {error}") from error


class Registry:
    """The registered model `name` and the experiment beside it, on the tracking server at `uri`; nothing is sent until used.

    Sets MLflow's HTTP retries, timeout and telemetry in the environment of this process unless they are set already.
    """

    def __init__(self, uri: str, name: str, experiment: str = "errata") -> None:
        from mlflow import MlflowClient

        for key, value in _SETTINGS.items():
            os.environ.setdefault(key, value)
        self.uri, self.name, self.experiment = uri, name, experiment
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def mirror(self, ledger: Ledger) -> int:
        """Bring MLflow up to the ledger, and the alias `serving` to its head; returns how many versions were added.

        One process at a time. Raises `RegistryUnavailable`.
        """
        with _reaching(self.uri):
            registered = self._registered()
            missing = [number for number in range(ledger.newest + 1) if number not in registered]
            run_id = self._mirror_run() if missing else ""
            for number in missing:
                registered[number] = self._add(ledger.version(number), run_id)
            head = ledger.head  # an append in the meantime is for the next call
            if head in registered:
                self._client.set_registered_model_alias(self.name, "serving", registered[head])
        return len(missing)

    def versions(self) -> list[dict[str, Any]]:
        """What is registered, oldest first: version, mlflow_version, fingerprint, model_id, tags, aliases.

        Raises `RegistryUnavailable`.
        """
        with _reaching(self.uri):
            serving = self._client.get_registered_model(self.name).aliases if self._exists() else {}
            return [
                {
                    "version": int(found.tags[VERSION_TAG]),
                    "mlflow_version": int(found.version),
                    "fingerprint": found.tags["errata.fingerprint"],
                    "model_id": found.source.removeprefix("models:/"),
                    "tags": dict(found.tags),
                    "aliases": sorted(alias for alias, at in serving.items() if int(at) == int(found.version)),
                }
                for found in self._search()
            ]

    def runs(self) -> list[dict[str, Any]]:
        """Every run of the experiment: its id, name, params and tags. Raises `RegistryUnavailable`."""
        with _reaching(self.uri):
            found = self._client.search_runs([self._experiment_id()], max_results=1000)
        return [
            {"id": run.info.run_id, "name": run.info.run_name, "params": run.data.params, "tags": run.data.tags}
            for run in found
        ]

    def _exists(self) -> bool:
        return bool(self._client.search_registered_models(f"name = '{self.name}'", max_results=1))

    def _search(self) -> list[Any]:
        found: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_model_versions(f"name = '{self.name}'", max_results=1000, page_token=token or None)
            found += page
            token = page.token or None
        return sorted((v for v in found if VERSION_TAG in v.tags), key=lambda v: int(v.tags[VERSION_TAG]))

    def _registered(self) -> dict[int, str]:
        """MLflow's version by the ledger's; makes the registered model if it is not there."""
        if not self._exists():
            self._client.create_registered_model(self.name)
        return {int(found.tags[VERSION_TAG]): found.version for found in self._search()}

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        return found.experiment_id if found else self._client.create_experiment(self.experiment)

    def _mirror_run(self) -> str:
        """The one run that the scorecards of all versions belong to: MLflow keeps no metric without a run."""
        experiment = self._experiment_id()
        found = self._client.search_runs([experiment], f"tags.`errata.mirror` = '{self.name}'", max_results=1)
        if found:
            return found[0].info.run_id
        run = self._client.create_run(experiment, tags={"errata.mirror": self.name}, run_name=f"versions of {self.name}")
        self._client.set_terminated(run.info.run_id)
        return run.info.run_id

    def _add(self, version: Version, run_id: str) -> str:
        """Exactly one registered version, whatever an interrupted call left: an unregistered LoggedModel is replaced."""
        experiment, tags = self._experiment_id(), _lineage(version)
        title = f"{self.name}-{version.number}"
        for left in self._client.search_logged_models([experiment], f"name = '{title}'"):
            self._client.delete_logged_model(left.model_id)
        model = self._client.create_logged_model(experiment, title, source_run_id=run_id, tags=tags, model_type="errata-delta")
        with tempfile.TemporaryDirectory() as folder:
            for file in (ENTRY, DELTA, EDITS):
                if (version.directory / file).exists():
                    shutil.copy(version.directory / file, folder)
            self._client.log_model_artifacts(model.model_id, folder)
        for key, value in _metrics(version.scorecard).items():
            self._client.log_metric(run_id, key, value, step=version.number, model_id=model.model_id)
        self._client.finalize_logged_model(model.model_id, "READY")
        registered = self._client.create_model_version(
            self.name, f"models:/{model.model_id}", run_id=run_id, tags=tags, await_creation_for=0, model_id=model.model_id
        )
        return registered.version

    @contextmanager
    def training_run(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> Iterator[TrainingRun]:
        """A run to log into, FINISHED at the end of the block, FAILED if it raises. Raises `RegistryUnavailable`."""
        with _reaching(self.uri):
            run_id = self._client.create_run(self._experiment_id(), tags=dict(tags or {}), run_name=name).info.run_id
            for key, value in params.items():
                self._client.log_param(run_id, key, value)
        status = "FAILED"
        try:
            yield TrainingRun(self, run_id)
            status = "FINISHED"
        finally:
            with _reaching(self.uri):
                self._client.set_terminated(run_id, status)


class TrainingRun:
    """An MLflow run that is under way."""

    def __init__(self, registry: Registry, run_id: str) -> None:
        self._registry, self.run_id = registry, run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Raises `RegistryUnavailable`."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        with _reaching(self._registry.uri):
            found = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
            self._registry._client.log_batch(self.run_id, metrics=found)

    def artifact(self, directory: str | Path, name: str) -> None:
        """Every file of `directory`, under `name` in the run's artifacts. Raises `RegistryUnavailable`."""
        with _reaching(self._registry.uri):
            self._registry._client.log_artifacts(self.run_id, str(directory), name)


def _lineage(version: Version) -> dict[str, str]:
    names = {"version": version.number, "parent": "" if version.parent is None else version.parent}
    others = {"fingerprint": version.fingerprint, "editor": version.editor, "plan": version.plan}
    return {f"errata.{key}": str(value) for key, value in {**names, **others}.items()}


def _metrics(scorecard: Mapping[str, Any]) -> dict[str, float]:
    nested = {f"{name}/{key}": v for name, value in scorecard.items() if isinstance(value, Mapping) for key, v in value.items()}
    numbers = {key: value for key, value in {**scorecard, **nested}.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


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
