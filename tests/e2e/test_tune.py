"""A sweep as a user runs it: killed and started again, its best plan accepted by train.py, its runs nested in MLflow."""

import json
from pathlib import Path

import pytest

from errata.local.services import free_port
from errata.registry import Registry
from jobs import train
from jobs.arguments import from_arguments
from tests.e2e.test_jobs import lines_of, output_until_killed
from tests.e2e.test_registry import start_mlflow

ARGUMENTS = ["plan=tiny", "trials=2", "validation=8", "schedule.train_steps=2", "checkpoint_every=1"]


@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_sweep_ends_with_a_plan_also_if_it_was_killed(home: Path, tmp_path: Path, is_killed: bool) -> None:
    """The tests of training kill a worker; `jobs/tune.py` then adds only what Ray Tune restores."""
    port = free_port()
    server = start_mlflow(tmp_path / "mlflow", port)
    arguments = [*ARGUMENTS, f"mlflow=http://127.0.0.1:{port}", f"editor.rank={17 if is_killed else 16}"]
    try:
        if is_killed:
            assert " score " in output_until_killed(home, "at train_step", "jobs/tune.py", *arguments)
        output = "".join(lines_of(home, "jobs/tune.py", *arguments))
        assert ("tune: continuing" in output) == is_killed and "the best plan" in output
        (found,) = {path.parent for path in (home / "tune").glob("*/found/best.json") if str(path) in output}
        trials = json.loads((found / "trials.json").read_text())["trials"]
        assert len(trials) == 2 and all(trial["score"] is not None for trial in trials)
        assert (found / "heatmap.png").exists()
        runs = Registry(f"http://127.0.0.1:{port}", "errata").runs()
        (parent,) = [run for run in runs if run["name"].startswith("tune-")]
        children = [run for run in runs if run["tags"].get("mlflow.parentRunId") == parent["id"]]
        assert len(children) == 2 and all("editor.reward.discount" in run["params"] for run in children)
        train.check(from_arguments([f"plan={found / 'best.json'}"]))
    finally:
        server.stop()
