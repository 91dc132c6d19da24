"""A fake of MLflow's client, which keeps what a server would hold and can fail at any call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

IDS = count(1)  # Two servers never give the same id.


class FakeMlflow:
    """The content of an MLflow server behind the client's methods.

    A call whose number is in `fails` raises before it is carried out, or with `late` after it.
    """

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.deleted_experiments: set[str] = set()
        self.runs: list[Any] = []
        self.models: dict[str, Any] = {}
        self.registered: dict[str, Any] = {}
        self.versions: list[Any] = []
        self.highest_deleted = 0
        self.metrics: set[tuple[Any, ...]] = set()  # A set, because MLflow keeps one copy of what is logged twice.
        self.tables: dict[str, str] = {}
        self.calls: list[str] = []
        self.fails: Callable[[int], bool] = lambda call: False
        self.late = False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("_") or name not in CALLS:
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            fails = self.fails(len(self.calls))
            if fails and not self.late:
                raise MlflowException(f"call {len(self.calls)} has failed")
            if not fails:
                return found(*arguments, **named)
            with contextlib.suppress(MlflowException):
                found(*arguments, **named)
            raise MlflowException(f"the answer to call {len(self.calls)} was lost")

        return call

    def get_experiment_by_name(self, name: str) -> Any:
        stage = "deleted" if name in self.deleted_experiments else "active"
        found = self.experiments.get(name)
        return SimpleNamespace(experiment_id=found, lifecycle_stage=stage) if found else None

    def create_experiment(self, name: str) -> str:
        assert name not in self.experiments
        return self.experiments.setdefault(name, str(next(IDS)))

    def search_runs(self, experiments: list[str], condition: str, max_results: int) -> list[Any]:
        return [run for run in self.runs if condition == f"tags.`errata.mirror` = '{run.tags['errata.mirror']}'"]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        run = SimpleNamespace(info=SimpleNamespace(run_id=f"run-{next(IDS)}", status="RUNNING"), tags=tags)
        self.runs.append(run)
        return run

    def set_terminated(self, run_id: str) -> None:
        for run in self.runs:
            run.info.status = "FINISHED" if run.info.run_id == run_id else run.info.status

    def create_logged_model(self, experiment: str, name: str, run: str, tags: Any, params: Any, kind: str) -> Any:
        model_id = f"m-{next(IDS)}"
        found = {"model_id": model_id, "name": name, "tags": tags, "params": params, "status": "PENDING", "files": set()}
        self.models[model_id] = SimpleNamespace(**found)
        return self.models[model_id]

    def search_logged_models(self, experiments: list[str], condition: str) -> list[Any]:
        return [model for model in self.models.values() if condition == f"name = '{model.name}'"]

    def delete_logged_model(self, model_id: str) -> None:
        del self.models[model_id]

    def log_model_artifacts(self, model_id: str, folder: str) -> None:
        self.models[model_id].files |= {path.name for path in Path(folder).iterdir()}

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        assert len(metrics) <= 1000
        self.metrics |= {(m.key, m.value, m.timestamp, m.step) for m in metrics}

    def finalize_logged_model(self, model_id: str, status: str) -> None:
        self.models[model_id].status = status

    def get_registered_model(self, name: str) -> Any:
        if name not in self.registered or self.registered[name].is_prompt:
            raise MlflowException(f"there is no model {name}", RESOURCE_DOES_NOT_EXIST)
        return self.registered[name]

    def search_registered_models(self, condition: str, max_results: int) -> list[Any]:
        name, _, rest = condition.removeprefix("name = '").partition("' AND ")
        assert rest == "tags.`mlflow.prompt.is_prompt` = 'true'"
        return [self.registered[name]] if name in self.registered and self.registered[name].is_prompt else []

    def create_registered_model(self, name: str, tags: dict[str, str], description: str) -> None:
        assert name not in self.registered
        self.registered[name] = registered_model(tags, description)

    def create_model_version(self, name: str, source: str, run_id: str, tags: Any, **_: Any) -> Any:
        if name not in self.registered:
            raise MlflowException(f"there is no model {name}")
        assert self.models[source.removeprefix("models:/")].status == "READY"
        number = max((int(v.version) for v in self.versions), default=0)
        number = max(number, self.highest_deleted) + 1  # MLflow gives no number twice.
        there = {"version": str(number), "source": source, "tags": tags, "description": None, "status": "READY"}
        self.versions.append(SimpleNamespace(**there))
        return self.versions[-1]

    def update_model_version(self, name: str, version: str, description: str) -> None:
        next(v for v in self.versions if v.version == version).description = description

    def delete_model_version(self, name: str, version: str) -> None:
        self.versions = [v for v in self.versions if v.version != version]
        self.highest_deleted = max(self.highest_deleted, int(version))

    def search_model_versions(self, condition: str, max_results: int, order_by: Any = (), page_token: str | None = None) -> Any:
        assert order_by == ["version_number ASC"] or max_results == 1
        left, _, wanted = condition.partition(" AND ")[2].rpartition(" ")
        tests = {
            "version_number >": lambda v: int(v.version) > int(wanted),
            "version_number =": lambda v: v.version == wanted,
            "tags.`errata.version` =": lambda v: v.tags.get("errata.version") == wanted.strip("'"),
        }
        found = [v for v in self.versions if tests[left](v)]
        start = int(page_token or 0)
        page = Page(found[start : start + 2])  # Pages of two, so that there are several.
        page.token = str(start + 2) if start + 2 < len(found) else None
        return page

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        assert version in {v.version for v in self.versions}
        self.registered[name].aliases[alias] = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self.registered[name].aliases.pop(alias, None)

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.registered[name].tags[key] = value

    def log_artifacts(self, run_id: str, folder: str, under: str) -> None:
        self.tables |= {path.name: path.read_text() for path in Path(folder).iterdir()}


def registered_model(tags: dict[str, str], description: str = "", is_prompt: bool = False) -> Any:
    return SimpleNamespace(aliases={}, tags=dict(tags), description=description, is_prompt=is_prompt)


CALLS = {name for name in vars(FakeMlflow) if not name.startswith("_")}


class Page(list[Any]):
    token: str | None = None
