"""The versions of a registered model in MLflow, and the run that holds their metrics."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.ledger import DELTA, EDITS, ENTRY, Version
from errata.registry import version_card
from errata.registry.cursor import Registered, RegisteredModel, RegistryConflict

VERSION_TAG, FINGERPRINT_TAG = "errata.version", "errata.fingerprint"
LIVE_METRIC = "live_version"
MAX_METRICS = 1000  # MLflow's limit for one call.
DESCRIPTION = (
    "The versions of a model that Errata edits; the alias `serving` is on the live one. While the tag `errata.behind` is not "
    "0, versions are still to be mirrored, and `errata.live_version` is the number of the live one."
)


class ModelStore:
    """One registered model with its versions, and the run of their metrics, because MLflow keeps no metric without a run."""

    def __init__(self, client: Any, name: str, experiment: str) -> None:
        self._client, self.name, self.experiment = client, name, experiment
        self._found: dict[str, str] = {}

    def forget(self) -> None:
        """Drop the ids that were found in MLflow, which may be gone."""
        self._found = {}

    def model(self) -> RegisteredModel | None:
        """Look up the registered model, also one that is a prompt."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            is_prompt = f"name = '{self.name}' AND tags.`mlflow.prompt.is_prompt` = 'true'"  # MLflow hides prompts otherwise.
            prompts = self._client.search_registered_models(is_prompt, 1)
            return RegisteredModel({}, {}, is_prompt=True) if prompts else None
        return RegisteredModel(dict(found.tags), {alias: int(at) for alias, at in found.aliases.items()})

    def create(self, tags: Mapping[str, str]) -> None:
        """Create the registered model with these tags."""
        self._client.create_registered_model(self.name, dict(tags), DESCRIPTION)

    def has_versions(self) -> bool:
        """Return True if the registered model has versions, also those of other programs."""
        return bool(self._client.search_model_versions(f"name = '{self.name}' AND version_number > 0", 1))

    def registered(self, after: int = 0) -> Iterator[Registered]:
        """Iterate over the versions with an MLflow number above `after`, in MLflow's order."""
        return (_registered(found) for found in self.search(f"version_number > {after}"))

    def search(self, condition: str = "version_number > 0") -> Iterator[Any]:
        """Iterate over MLflow's objects in the order of their numbers; versions that others registered are skipped."""
        wanted, token = f"name = '{self.name}' AND {condition}", None
        while True:
            page = self._client.search_model_versions(wanted, 1000, order_by=["version_number ASC"], page_token=token)
            yield from (found for found in page if _is_mirrored(found))
            if not (token := page.token):
                return

    def at(self, mlflow_version: int) -> Registered | None:
        """Look up a version by MLflow's number."""
        return next((_registered(found) for found in self.search(f"version_number = {mlflow_version}")), None)

    def find(self, version: int) -> Registered | None:
        """Look up a version by the ledger's number."""
        return next((_registered(found) for found in self.search(f"tags.`{VERSION_TAG}` = '{version}'")), None)

    def add(self, version: Version, model_id: str) -> Registered:
        """Register a version, whose LoggedModel is whole."""
        there = self._client.create_model_version(
            self.name,
            f"models:/{model_id}",
            run_id=self.run_id(),
            tags=version_card.tags(version),
            await_creation_for=0,
            model_id=model_id,
        )
        return Registered(version.number, version.fingerprint, int(there.version), is_described=False)

    def prepare(self, version: Version) -> str:
        """Return the id of a whole LoggedModel: one that an interrupted call left unregistered, or a new one.

        What an interrupted call left in pieces is deleted. One of this name with another fingerprint is another's.
        """
        title, tags = f"{self.name}-{version.number}", version_card.tags(version)
        for left in self._client.search_logged_models([self.experiment_id()], f"name = '{title}'"):
            if left.tags.get(FINGERPRINT_TAG) != version.fingerprint:
                continue
            if left.status == "READY":
                return left.model_id
            self._client.delete_logged_model(left.model_id)
        model_id = self._client.create_logged_model(
            self.experiment_id(), title, self.run_id(), tags, version_card.params(version), "errata-delta"
        ).model_id
        with tempfile.TemporaryDirectory() as folder:
            for file in (ENTRY, DELTA, EDITS):
                if (version.directory / file).exists():
                    shutil.copy(version.directory / file, folder)
            if version.edits:
                (Path(folder) / "edits.csv").write_text(version_card.edits_csv(version))
            self._client.log_model_artifacts(model_id, folder)
        self._log_scores(version, model_id)
        self._client.finalize_logged_model(model_id, "READY")
        return model_id

    def _log_scores(self, version: Version, model_id: str) -> None:
        """Log the scorecard at step = version, with the version's time: MLflow then keeps one copy of a metric logged twice."""
        from mlflow.entities import Metric

        when, step = version_card.created_ms(version.created), version.number
        scores = [Metric(key, v, when, step, model_id=model_id) for key, v in version_card.metrics(version).items()]
        live = Metric(LIVE_METRIC, float(step), when, step)  # An append makes the version the head.
        for first in range(0, len(scores) + 1, MAX_METRICS):
            self._client.log_batch(self.run_id(), metrics=[*scores, live][first : first + MAX_METRICS])

    def describe(self, mlflow_version: int, version: Version) -> None:
        """Write the description of a version."""
        self._client.update_model_version(self.name, str(mlflow_version), version_card.description(version))

    def remove(self, mlflow_version: int) -> None:
        """Delete a version that was registered twice."""
        self._client.delete_model_version(self.name, str(mlflow_version))

    def set_alias(self, alias: str, mlflow_version: int | None) -> None:
        """Set an alias on a version; None deletes it."""
        if mlflow_version is None:
            self._client.delete_registered_model_alias(self.name, alias)
        else:
            self._client.set_registered_model_alias(self.name, alias, str(mlflow_version))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the registered model."""
        for key, value in tags.items():
            self._client.set_registered_model_tag(self.name, key, value)

    def log_refusals(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Write refused edits as a table in the run's artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_text(version_card.refusals_csv(records))
            self._client.log_artifacts(self.run_id(), folder, "refusals")

    def log_head_moves(self, moves: Sequence[Mapping[str, Any]]) -> None:
        """Log moves of the head as points of the metric `live_version`."""
        from mlflow.entities import Metric

        points = [Metric(LIVE_METRIC, m["version"], version_card.created_ms(m["time"]), m["after"]) for m in moves]
        for first in range(0, len(points), MAX_METRICS):
            self._client.log_batch(self.run_id(), metrics=points[first : first + MAX_METRICS])

    def experiment_id(self) -> str:
        """Return the experiment's id; create it if there is none. Raises `RegistryConflict` if it is deleted."""
        if "experiment" not in self._found:
            found = self._client.get_experiment_by_name(self.experiment)
            if found and found.lifecycle_stage == "deleted":
                raise RegistryConflict(
                    f"the experiment {self.experiment!r} in MLflow is deleted, and MLflow keeps its name: restore it (`mlflow "
                    f"experiments restore --experiment-id {found.experiment_id}`), or delete it permanently (`mlflow gc "
                    f"--experiment-ids {found.experiment_id}`)"
                )
            self._found["experiment"] = found.experiment_id if found else self._client.create_experiment(self.experiment)
        return self._found["experiment"]

    def run_id(self) -> str:
        """Return the id of the run that holds metrics and refusals, and create the run if it does not exist."""
        if "run" not in self._found:
            experiment, tag = self.experiment_id(), {"errata.mirror": self.name}
            runs = self._client.search_runs([experiment], f"tags.`errata.mirror` = '{self.name}'", max_results=1)
            run = runs[0] if runs else self._client.create_run(experiment, tags=tag, run_name=f"versions of {self.name}")
            if run.info.status != "FINISHED":
                self._client.set_terminated(run.info.run_id)
            self._found["run"] = run.info.run_id
        return self._found["run"]


def _is_mirrored(found: Any) -> bool:
    """Return True for a version that a mirror registered. A copy of one has its tags, too, but a version as its source."""
    is_copy = "/" in str(found.source).removeprefix("models:/") and str(found.source).startswith("models:/")
    return found.tags.get(VERSION_TAG, "").isdecimal() and FINGERPRINT_TAG in found.tags and not is_copy


def _registered(found: Any) -> Registered:
    tags, has_failed = found.tags, found.status == "FAILED_REGISTRATION"
    return Registered(int(tags[VERSION_TAG]), tags[FINGERPRINT_TAG], int(found.version), bool(found.description), has_failed)
