"""Training jobs as a user runs them: a killed worker, two workers against one, a benchmark, moments of keys."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from errata.datasets.reader import read_edits
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.hypernet.rledit import RLEdit
from errata.model.key_moments import gradient_sums, key_sums
from errata.model.language_model import checkpoint_fingerprint, load
from errata.model.matrices import find_matrices
from jobs import bench, moments, train
from jobs.arguments import from_arguments as from_plan_arguments
from jobs.plans import PLANS
from jobs.suites import from_arguments
from jobs.training_data import texts

ROOT = Path(__file__).parents[2]
LONGEST_S = 400.0
ARGUMENTS = ["plan=tiny", "schedule.train_steps=12", "checkpoint_every=2"]


def started(home: Path, *command: str) -> "subprocess.Popen[str]":
    """Start a job in its own Ray. It is killed after `LONGEST_S`, so that a reader of its lines never blocks."""
    environment = {**os.environ, "ERRATA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    job = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    ended_after(LONGEST_S, job)
    return job


def ended_after(seconds: float, job: "subprocess.Popen[str]") -> None:
    """Kill a job that runs too long."""
    timer = threading.Timer(seconds, job.kill)
    timer.daemon = True
    timer.start()


def output_until_killed(home: Path, says: str, *command: str) -> str:
    """Output of a job up to a line that contains `says`; then its driver is killed with SIGKILL."""
    job, seen = started(home, *command), []
    assert job.stdout is not None
    for line in job.stdout:
        seen.append(line)
        if says in line:
            job.send_signal(signal.SIGKILL)
            break
    assert job.wait(timeout=60) == -signal.SIGKILL, "the job ended by itself: " + "".join(seen[-40:])
    return "".join(seen)


def lines_of(home: Path, *command: str) -> Iterator[str]:
    """Yield the output of a job in its own Ray line by line; fails with the job's log if the job fails."""
    job = started(home, *command)
    seen = []
    try:
        assert job.stdout is not None
        for line in job.stdout:
            seen.append(line)
            yield line
        assert job.wait(timeout=60) == 0, "".join(seen[-60:])
    finally:
        if job.poll() is None:
            job.send_signal(signal.SIGINT)
            job.wait(timeout=60)


def log_of(home: Path, job: str) -> str:
    """Read the newest log of a job, which has the frameworks' lines, too."""
    return max((home / "logs").glob(f"{job}-*.log"), key=lambda path: path.stat().st_mtime).read_text()


@pytest.mark.long
def test_training_continues_when_a_worker_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, after, shown = None, [], []
    for line in lines_of(home, "jobs/train.py", *ARGUMENTS):
        shown.append(line)
        if not (found := re.match(r"train: (\d+)/12", line)):
            continue
        if killed is None and int(found[1]) >= 5:
            (killed,) = set(re.findall(r"pid=(\d+)\S* train: \d+/12", log_of(home, "train")))
            os.kill(int(killed), signal.SIGKILL)
        elif killed is not None:
            after.append(int(found[1]))
    assert killed is not None and after[-1] == 12
    assert after[0] > 1, "training started from nothing instead of from its last checkpoint"
    (artifact,) = (home / "hypernets").iterdir()
    record = json.loads((artifact / "artifact.json").read_text())["record"]
    assert [point["train_step"] for point in record["curve"]] == list(range(1, 13))
    assert record["seed"] == 0 and record["plan"]["schedule"]["train_steps"] == 12
    assert RLEdit.load(artifact).trained_policy().base_preconditioners
    assert len(list(read_edits(home / "streams" / "world-20-train.parquet"))) == 36
    assert all(line.startswith(("train: ", "pretrain: ")) for line in shown), "lines of the frameworks are shown"
    monkeypatch.setenv("ERRATA_HOME", str(home))
    train.run(from_plan_arguments(ARGUMENTS))  # does not start Ray, because the policy exists
    assert not ray.is_initialized()


def test_two_workers_train_the_policy_of_one(home: Path) -> None:
    """Each has half of the episodes."""
    script = "import sys; from jobs import train; from jobs.arguments import from_arguments as plan; "
    script += "[train.run(plan([*sys.argv[1:], f'num_workers={n}'])) for n in (1, 2)]"
    output = "".join(lines_of(home, "-c", script, "plan=tiny", "schedule.train_steps=2"))
    one, two = (load_file(Path(folder) / "policy.safetensors") for folder in re.findall(r"the policy is in (\S+)", output))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_benchmark_is_run_once_and_then_cached(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["jobs/bench.py", "suite=tiny", "seeds=3"]
    output = "".join(lines_of(home, *command))
    for name in ("RLEdit [2/2], seed 0", "LocFT, seed 3", "AlphaEdit, seed 3", "state, seed 3"):
        assert f"bench: {name}, 8 edits" in output
    report = json.loads((home / "bench-tiny" / "report.json").read_text())
    assert [(row["editor"], row["edits"]) for row in report["rows"]] == [
        (name, edits) for name in ("unedited", "RLEdit", "LocFT", "AlphaEdit", "state") for edits in (1, 8)
    ]
    assert (
        report["rows"][2]["train_s"] > report["rows"][4]["train_s"] == 0
        and report["settings"]["RLEdit"]["schedule"]["train_steps"] == 1
    )
    monkeypatch.setenv("ERRATA_HOME", str(home))
    bench.run_suite(from_arguments(command[1:]))
    again = capsys.readouterr().out
    assert "bench: RLEdit, seed" not in again and "| RLEdit | 8 | 1 |" in again
    assert json.loads((home / "bench-tiny" / "report.json").read_text())["rows"] == report["rows"]


def test_moments_are_those_of_one_pass_and_start_an_editor(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["jobs/moments.py", "plan=tiny", "modules=layers.0.mlp.down_proj", "directions=1"]
    assert "moments: 1 matrices over" in "".join(lines_of(home, *command))
    monkeypatch.setenv("ERRATA_HOME", str(home))
    found = moments.run(moments.from_command_line(command[1:]))  # does not start Ray, because they are measured
    assert not ray.is_initialized()
    plan = PLANS["tiny"]()
    fingerprint = checkpoint_fingerprint(home / "testbed" / plan.digest("corpus", "shape"))[:12]
    assert f"{fingerprint}-world-20-" in found.name and "-float32-" in found.name
    editor = replace(AlphaEdit.from_artifact(found), context_words=("the",))
    model = load(home / "testbed" / plan.digest("corpus", "shape"))
    sums, count = key_sums(model.module, texts(plan, model), ["model.layers.0.mlp.down_proj"], all_tokens=True)
    assert editor.moments is not None and editor.moments.record["num_tokens"] == count and f"-{count}t-" in found.name
    expected_II = sums["model.layers.0.mlp.down_proj"] / count
    torch.testing.assert_close(editor.moments.by_input["model.layers.0.mlp.down_proj"], expected_II, rtol=1e-4, atol=1e-5)
    assert editor.start(model, find_matrices(model.module, editor.modules)).num_edits == 0
    directions_OO = editor.moments.directions["model.layers.0.mlp.down_proj"]
    grad_OI = gradient_sums(model.module, texts(plan, model), ["model.layers.0.mlp.down_proj"])["model.layers.0.mlp.down_proj"]
    sizes_O = (directions_OO.T @ grad_OI).norm(dim=1)
    torch.testing.assert_close(sizes_O, torch.linalg.svdvals(grad_OI), rtol=1e-2, atol=1e-2 * float(sizes_O[0]))


@pytest.mark.long
def test_cross_fitted_training_ends_with_the_plans_own_preconditioner(home: Path) -> None:
    """A policy trained with the folds' key preconditioners is used with the plan's."""
    arguments = ["plan=tiny", "schedule.train_steps=2", "cross_fit=True", "metric_part=train"]
    output = "".join(lines_of(home, "jobs/train.py", *arguments))
    editor = RLEdit.load(re.findall(r"the policy is in (\S+)", output)[-1])
    plan = replace(PLANS["tiny"](), metric_part="train")
    model = load(home / "testbed" / plan.digest("corpus", "shape"))
    for name, base_II in editor.measure_preconditioners(model, texts(plan, model)).items():
        torch.testing.assert_close(editor.trained_policy().base_preconditioners[name], base_II, rtol=1e-4, atol=1e-6)
