"""The registry: the ledger's mirror in MLflow, and the training runs.

The ledger is the source of truth. Each version becomes a LoggedModel that is PENDING until it is whole (its files without the
full model, its scorecard, its lineage), then READY and registered. If MLflow is down, `mirror` raises `RegistryUnavailable`
and a later call continues, in order, where MLflow's versions end. `mirror.py` decides what to do next, `model_store.py` calls
MLflow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from errata.ledger import Ledger, LedgerDamaged
from errata.registry.cursor import Mirrored, RegistryConflict, RegistryUnavailable
from errata.registry.mirror import Mirror
from errata.registry.model_store import FINGERPRINT_TAG, VERSION_TAG, ModelStore

__all__ = ["Registry", "RegistryConflict", "RegistryUnavailable", "TrainingRun"]
# A server that is down is noticed within about a second instead of MLflow's 4 minutes of retries. No request is repeated,
# because one whose response was lost may have been carried out.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
NAME, MESSAGE = 240, 400  # MLflow's tables hold 256 characters of a name, and `NAME-VERSION` is one, too.


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        text = _without_password(f"MLflow at {uri}{_sentence(error)}", uri)
        raise RegistryUnavailable(text) from error


def _sentence(error: Exception) -> str:
    """Say in one line what is wrong with the server, and what to do about it.

    MLflow's own exception has no code for a failed connection; the exceptions that it was raised from have types.
    """
    import requests

    causes = list(_causes(error))
    text, code = " ".join(str(error).split()), getattr(error, "error_code", "")
    short = text if len(text) <= MESSAGE else text[: MESSAGE - 1] + "…"
    if any(isinstance(cause, requests.exceptions.RetryError) for cause in causes):
        return f" answers with an error of the server: {causes[-1]}"
    if any(isinstance(cause, requests.ConnectionError | requests.Timeout) for cause in causes):
        return f" cannot be reached: {causes[-1]}"
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return (
            " refuses the credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to "
            f"those of a user who may write there ({short})"
        )
    if code == "ENDPOINT_NOT_FOUND":
        return f" lacks an address that Errata needs: it takes an MLflow server of version 3 or later ({short})"
    return f": {short}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an exception and those that it was raised from, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _without_password(text: str, uri: str) -> str:
    """Hide user and password of the server's address in a text that many may read."""
    secret = urlsplit(uri).netloc.rpartition("@")[0]
    return text.replace(f"{secret}@", "") if secret else text


@contextmanager
def _reading(ledger: Ledger) -> Iterator[None]:
    try:
        yield
    except RegistryUnavailable:
        raise
    except (LedgerDamaged, OSError) as error:
        raise RegistryUnavailable(f"the ledger in {ledger.directory} cannot be mirrored: {error}") from error


class Registry:
    """The registered model `name` and an experiment, on the tracking server at `uri`. The constructor sends no request.

    It sets MLflow's HTTP retries, timeout and telemetry in the environment of this process unless they are set already.
    `client` replaces the `MlflowClient`. Raises `ValueError` for a name that MLflow does not accept, and `RegistryUnavailable`
    for an address that MLflow cannot use.
    """

    def __init__(self, uri: str, name: str, experiment: str = "errata", client: Any = None) -> None:
        from mlflow import MlflowClient

        if not name.strip() or len(name) > NAME or not name.isprintable() or any(letter in name for letter in "/:.%\"'"):
            raise ValueError(
                f"{name[:NAME]!r} cannot be the name of a registered model and its versions in MLflow: use 1 to {NAME} "
                "printable characters without / : . % and quotes"
            )
        for key, value in _SETTINGS.items():
            os.environ.setdefault(key, value)
        self.uri, self.name, self.experiment = uri, name, experiment
        with _reaching(uri):
            self._client = client or MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._store = ModelStore(self._client, name, experiment)
        self._mirrors: dict[Path, Mirror] = {}

    def mirror(self, ledger: Ledger, limit: int | None = None) -> Mirrored:
        """Register at most `limit` versions of the ledger that MLflow lacks, and move the alias `serving` to its head.

        Versions are registered in order, each once, wherever an earlier call was interrupted. One process at a time. Raises
        `RegistryUnavailable`, `RegistryConflict` if the name is another's in MLflow, and `ValueError` unless the address is a
        server's.
        """
        if not self.uri.lower().startswith(("http://", "https://")):
            raise ValueError(
                "the mirror takes the http address of an MLflow server, not a database or folder, because MLflow looks for the "
                "files of a registered model through an address that is global to the process: start `mlflow server "
                "--backend-store-uri …` on it"
            )
        if ledger.directory not in self._mirrors:
            self._mirrors[ledger.directory] = Mirror(ledger, self._store, self.name)
        with _reading(ledger), _reaching(self.uri):
            return self._mirrors[ledger.directory].advance(limit)

    def versions(self) -> list[dict[str, Any]]:
        """List the registered versions, oldest first: version, mlflow_version, fingerprint, model_id, tags, aliases.

        Raises `RegistryUnavailable`.
        """
        with _reaching(self.uri):
            model = self._store.model()
            aliases = model.aliases if model else {}
            return [
                {
                    "version": int(found.tags[VERSION_TAG]),
                    "mlflow_version": int(found.version),
                    "fingerprint": found.tags[FINGERPRINT_TAG],
                    "model_id": found.source.removeprefix("models:/"),
                    "tags": dict(found.tags),
                    "aliases": sorted(alias for alias, at in aliases.items() if at == int(found.version)),
                }
                for found in sorted(self._store.search(), key=lambda found: int(found.tags[VERSION_TAG]))
            ]

    def runs(self) -> list[dict[str, Any]]:
        """List the runs of the experiment: id, name, params and tags. Raises `RegistryUnavailable`."""
        with _reaching(self.uri):
            found = self._client.search_runs([self._store.experiment_id()], max_results=1000)
        return [
            {"id": run.info.run_id, "name": run.info.run_name, "params": run.data.params, "tags": run.data.tags}
            for run in found
        ]

    def has_run(self, tags: Mapping[str, str]) -> bool:
        """Return True if a FINISHED run has these tags. Raises `RegistryUnavailable`."""
        with _reaching(self.uri):
            return bool(self._search(tags, "attributes.status = 'FINISHED'"))

    def drop_unfinished(self, tags: Mapping[str, str]) -> None:
        """Delete the interrupted runs with these tags, and the runs nested in them. MLflow can restore them.

        Raises `RegistryUnavailable`.
        """
        with _reaching(self.uri):
            for run in self._search(tags, "attributes.status != 'FINISHED'"):
                for inner in self._search({"mlflow.parentRunId": run.info.run_id}):
                    self._client.delete_run(inner.info.run_id)
                self._client.delete_run(run.info.run_id)

    def _search(self, tags: Mapping[str, str], condition: str = "") -> list[Any]:
        wanted = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items()] + ([condition] if condition else [])
        return list(self._client.search_runs([self._store.experiment_id()], " and ".join(wanted), max_results=1000))

    @contextmanager
    def training_run(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> Iterator[TrainingRun]:
        """Yield a run to log into. It is FINISHED after the block, FAILED if the block raises. Raises `RegistryUnavailable`."""
        with _reaching(self.uri):
            run_id = self._client.create_run(self._store.experiment_id(), tags=dict(tags or {}), run_name=name).info.run_id
        status = "FAILED"
        try:
            with _reaching(self.uri):
                for key, value in params.items():
                    self._client.log_param(run_id, key, value)
            yield TrainingRun(self, run_id)
            status = "FINISHED"
        finally:
            with _reaching(self.uri):
                self._client.set_terminated(run_id, status)


class TrainingRun:
    """An MLflow run in progress."""

    def __init__(self, registry: Registry, run_id: str) -> None:
        self._registry, self.run_id = registry, run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at a step. Raises `RegistryUnavailable`."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        with _reaching(self._registry.uri):
            found = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
            self._registry._client.log_batch(self.run_id, metrics=found)

    def artifact(self, directory: str | Path, name: str) -> None:
        """Copy the files of `directory` to `name` in the run's artifacts. Raises `RegistryUnavailable`."""
        with _reaching(self._registry.uri):
            self._registry._client.log_artifacts(self.run_id, str(directory), name)
