"""Provenance of a job's result, kept in the result's own record and logged as an MLflow run.

The run holds the plan (fields as params, and `repeat/plan.json`, which `plan=FILE` takes), versions, commit, seed and the
data's fingerprints (`repeat/provenance.json`, and tags). It is logged when the result exists. A job that is started again logs
it if MLflow has no finished run of this result and this code.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from errata.model.language_model import checkpoint_fingerprint
from errata.provenance import as_tags, data_digest, provenance
from errata.registry import Registry, TrainingRun
from jobs.plan import Plan
from jobs.plan_json import write_plan

RESULT_TAG, CODE_TAG = "errata.result", "errata.code"


def made_from(plan: Plan, edits: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Record the plan's model, text, code and files of edits, given as {"edits.NAME": path or URI}.

    A generated corpus is identified by its name; the provenance contains the code that generates it.
    """
    data = {"text": data_digest(plan.text) if plan.text else plan.corpus.name}
    if plan.model or plan.model_dir.exists():
        data["model"] = checkpoint_fingerprint(plan.model_dir)
    return provenance(plan.seed, data | {name: data_digest(where) for name, where in (edits or {}).items()})


def log_run(
    kind: str,
    result: str,
    plan: Plan,
    made: Mapping[str, Any],
    fill: Callable[[TrainingRun], None] = lambda run: None,
    params: Mapping[str, Any] | None = None,
) -> bool:
    """Log the run that produced `result`; returns False if it is already logged or the plan names no MLflow.

    An unfinished run of an earlier call is deleted. `made` is the provenance in the result's record, `params` are logged beside
    the plan's fields, and `fill` logs metrics and artifacts. Raises `RegistryUnavailable`; the result is kept, and the job can
    be started again to log it.
    """
    if not plan.mlflow:
        return False
    registry = Registry(plan.mlflow, "errata")
    tags = {RESULT_TAG: result, **as_tags(made)}
    same = {name: tags[name] for name in (RESULT_TAG, CODE_TAG) if name in tags}
    if registry.has_run(same):
        return False
    registry.drop_unfinished(same)
    with registry.training_run(f"{kind}-{plan.name}", {**params_of(plan), **(params or {})}, tags) as run:
        with tempfile.TemporaryDirectory() as directory:
            write_plan(plan, Path(directory) / "plan.json")
            (Path(directory) / "provenance.json").write_text(json.dumps(dict(made), indent=1))
            run.artifact(directory, "repeat")
        fill(run)
    return True


def params_of(plan: Plan) -> dict[str, Any]:
    """Flatten the plan's fields to the names of the command line, such as `editor.reward.discount`."""
    return dict(_flat("", dataclasses.asdict(replace(plan, editor=plan.editor.without_policy()))))


def _flat(prefix: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        elif value is not None:
            yield f"{prefix}{name}", value
