"""What a job leaves beside its result: how the result was made, in the result's own record, and from it a run in MLflow.

The run holds the plan (fields as params, and `repeat/plan.json`, which `plan=FILE` takes), versions, commit, seed and the
data's fingerprints (`repeat/provenance.json`, and tags). It is written when the result is there; a job that is started again
writes it if MLflow has none that was finished, of this result and the code that made it.
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
    """The provenance of what is made of the plan's model, its text and files of `edits`, {"edits.NAME": path or URI}.

    A corpus that no file holds is told by its name; the code that makes it is in the provenance.
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
    """Log the run that made `result`, unless that is done or the plan names no MLflow; returns whether it was logged.

    What an earlier call was cut off in is deleted. `made` is its provenance as the result's record has it, `params` are told
    beside the plan's fields; `fill` logs what there is besides. Raises `RegistryUnavailable`; the result is kept, and the job
    can be started again to log it.
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
    """The plan's fields by their names as a command line writes them, such as `editor.reward.discount`."""
    return dict(_flat("", dataclasses.asdict(replace(plan, editor=replace(plan.editor, policy=None)))))


def _flat(prefix: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        elif value is not None:
            yield f"{prefix}{name}", value
