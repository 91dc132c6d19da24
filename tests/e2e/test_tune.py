"""A sweep as a user runs it: killed on the way, started again, its best plan trained, its runs nested in MLflow."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from errata.registry import Registry, start_server, stop_server
from tests.e2e.test_jobs import ROOT, lines_of
from tests.e2e.test_registry import free_port

ARGUMENTS = ["plan=tiny", "trials=2", "validation=8", "schedule.train_steps=2", "checkpoint_every=1"]


def test_a_sweep_goes_on_after_it_was_killed(tmp_path: Path) -> None:
    port = free_port()
    server = start_server(tmp_path / "mlflow", port)
    try:
        mlflow = f"mlflow=http://127.0.0.1:{port}"
        kill_after_first_score(tmp_path, mlflow)
        output = "".join(lines_of(tmp_path, "jobs/tune.py", *ARGUMENTS, mlflow))
        assert "going on with" in output and "the best plan" in output
        (found,) = (tmp_path / "tune").glob("*/found")
        trials = json.loads((found / "trials.json").read_text())["trials"]
        assert len(trials) == 2 and all(trial["score"] is not None for trial in trials)
        assert (found / "heatmap.png").exists()
        runs = Registry(f"http://127.0.0.1:{port}", "errata").runs()
        (parent,) = [run for run in runs if run["name"].startswith("tune-")]
        children = [run for run in runs if run["tags"].get("mlflow.parentRunId") == parent["id"]]
        assert len(children) == 2 and all("editor.reward.discount" in run["params"] for run in children)
        trained = "".join(lines_of(tmp_path, "jobs/train.py", f"plan={found / 'best.json'}", "mlflow="))
        assert "the policy is in" in trained
    finally:
        stop_server(server)


def kill_after_first_score(home: Path, *arguments: str) -> None:
    """With SIGKILL, the driver alone; its Ray ends with it."""
    environment = {**os.environ, "ERRATA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "jobs/tune.py", *ARGUMENTS, *arguments]
    sweep = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen = []
    assert sweep.stdout is not None
    for line in sweep.stdout:
        seen.append(line)
        if line.startswith("tune:") and "score" in line:
            sweep.send_signal(signal.SIGKILL)
            break
    sweep.wait(timeout=60)
    assert sweep.returncode == -signal.SIGKILL, "".join(seen[-40:])
