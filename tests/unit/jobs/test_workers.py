"""Workers of a training job: resources, and where their checkpoints are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.fs
import pytest
from ray.train import Checkpoint, ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.storage import StorageContext

from jobs.arguments import from_arguments
from jobs.plan import Plan
from jobs.plans import tiny
from jobs.workers import cause_of, forget_run, worker_resources


def test_checkpoints_are_stored_at_the_home_a_variable_or_an_argument(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny()
    assert plan.storage_for("train") == str(home / "train")
    monkeypatch.setenv("ERRATA_STORAGE", "s3://bucket/errata/")
    assert plan.storage_for("tune") == "s3://bucket/errata/tune"
    named = from_arguments(["plan=tiny", "storage=file:///shared", "placement=train"])
    assert named.storage_for("train") == "file:///shared/train" and named.digest() == plan.digest()
    with pytest.raises(ValueError, match="absolute path or a URI"):
        from_arguments(["plan=tiny", "storage=runs"])


def test_checkpoints_at_a_uri_are_written_and_removed(home: Path, tmp_path: Path) -> None:
    """Written by the class that Ray's workers use."""
    plan = replace(tiny(), storage=f"file://{tmp_path / 'elsewhere'}")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.pt").write_text("weights")
    storage = StorageContext(plan.storage_for("train"), "a run")
    kept = storage.persist_current_checkpoint(Checkpoint.from_directory(tmp_path / "state"), "checkpoint_0")
    assert (tmp_path / "elsewhere" / "train" / "a run" / "checkpoint_0" / "state.pt").read_text() == "weights"
    with kept.as_directory() as found:
        assert (Path(found) / "state.pt").read_text() == "weights"
    forget_run(plan, "a run")
    forget_run(plan, "a run that never was")
    assert not (tmp_path / "elsewhere" / "train" / "a run").exists()
    assert pyarrow.fs.FileSystem.from_uri(plan.storage_for("train"))[1] == str(tmp_path / "elsewhere" / "train")


@pytest.mark.parametrize(
    ("arguments", "cpus", "asked"),
    [
        ([], 4, {"CPU": 1.0}),
        (["num_workers=4"], 2, {"CPU": 0.4}),
        (["use_gpu=True"], 2, {"CPU": 1.0, "GPU": 1.0}),
        (["use_gpu=True", "gpus_per_worker=4"], 2, {"CPU": 1.0, "GPU": 4.0}),
        (["use_gpu=True", "placement=train"], 2, {"CPU": 1.0, "GPU": 1.0, "train": 0.001}),
    ],
)
def test_a_worker_requests_the_resources_of_its_plan(arguments: list[str], cpus: float, asked: dict[str, float]) -> None:
    plan: Plan = from_arguments(["plan=tiny", *arguments])
    assert worker_resources(plan, cpus) == pytest.approx(asked)


def test_the_cause_of_a_failed_training_is_one_line() -> None:
    fault = UserExceptionWithTraceback(ValueError("no text\nin the file"), "Traceback ...")
    assert cause_of(WorkerGroupError("1 worker failed", {1: fault})) == "worker 1: ValueError: no text"
    assert cause_of(ControllerError(TimeoutError("no resources"))) == "controller: TimeoutError: no resources"
