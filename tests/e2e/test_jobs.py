"""The training jobs as a user runs them, with a worker killed on the way."""

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
import torch
from safetensors.torch import load_file

from errata.datasets.reader import read_edits
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.hypernet.rledit import RLEdit
from errata.model.key_moments import gradient_sums, key_sums
from errata.model.language_model import checkpoint_fingerprint, load
from errata.model.matrices import find_matrices
from jobs import moments
from jobs.plans import PLANS
from jobs.suites import SUITES, from_arguments
from jobs.training_data import texts

ROOT = Path(__file__).parents[2]
LONGEST_S = 400.0
ARGUMENTS = ["plan=tiny", "schedule.train_steps=12", "checkpoint_every=2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def started(home: Path, *command: str) -> "subprocess.Popen[str]":
    """A job in a Ray of its own, which ends with it; killed where it hangs, so that who reads its lines does not, too."""
    environment = {**os.environ, "ERRATA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    job = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    ended_after(LONGEST_S, job)
    return job


def ended_after(seconds: float, job: "subprocess.Popen[str]") -> None:
    timer = threading.Timer(seconds, job.kill)
    timer.daemon = True
    timer.start()


def output_until_killed(home: Path, says: str, *command: str) -> str:
    """What a job wrote until a line had `says` in it; then its driver is killed with SIGKILL."""
    job, seen = started(home, *command), []
    assert job.stdout is not None
    for line in job.stdout:
        seen.append(line)
        if says in line:
            job.send_signal(signal.SIGKILL)
            break
    assert job.wait(timeout=60) == -signal.SIGKILL, "it ended by itself: " + "".join(seen[-40:])
    return "".join(seen)


def lines_of(home: Path, *command: str) -> Iterator[str]:
    """Run a job in a Ray of its own; yields its output line by line, and fails with it if the job fails."""
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


def test_training_goes_on_when_a_worker_is_killed(home: Path) -> None:
    killed, after = None, []
    for line in lines_of(home, "jobs/train.py", *ARGUMENTS):
        found = re.search(r"pid=(\d+).*train: (\d+)/12", line)
        if found and killed is None and int(found[2]) >= 5:
            killed = int(found[2])
            os.kill(int(found[1]), signal.SIGKILL)
        elif found and killed is not None:
            after.append(int(found[2]))
    assert killed is not None and after[-1] == 12
    assert after[0] > 1, "training started from nothing instead of from its last checkpoint"
    (artifact,) = (home / "hypernets").iterdir()
    record = json.loads((artifact / "artifact.json").read_text())["record"]
    assert [point["train_step"] for point in record["curve"]] == list(range(1, 13))
    assert record["seed"] == 0 and record["plan"]["schedule"]["train_steps"] == 12
    assert RLEdit.load(artifact).trained_policy().base_preconditioners
    assert len(list(read_edits(home / "streams" / "world-20-train.parquet"))) == 36


def test_a_second_run_finds_everything_there(home: Path) -> None:
    output = "".join(lines_of(home, "jobs/train.py", *ARGUMENTS))
    assert "the policy is there" in output


def test_two_workers_make_the_policy_of_one(home: Path) -> None:
    """With half the episodes each."""
    found = {}
    for num_workers in (1, 2):
        output = "".join(lines_of(home, "jobs/train.py", "plan=tiny", "schedule.train_steps=2", f"num_workers={num_workers}"))
        artifact = re.findall(r"the policy is in (\S+)", output)[-1]
        found[num_workers] = load_file(Path(artifact) / "policy.safetensors")
    assert found[1].keys() == found[2].keys()
    for name, tensor in found[1].items():
        torch.testing.assert_close(tensor, found[2][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan=huge"], "no plan is named 'huge'"),
        (["plan=tiny", "sead=1"], "has no field 'sead'"),
        (["plan=tiny", "seed=one"], "'one' is no int"),
        (["plan"], "field=value"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], says: str) -> None:
    done = subprocess.run([sys.executable, "jobs/train.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


def test_a_benchmark_is_run_and_then_found_there(home: Path) -> None:
    command = ["jobs/bench.py", "suite=tiny", "seeds=3"]
    output = "".join(lines_of(home, *command))
    for name in ("RLEdit [2/2], seed 0", "LocFT, seed 3", "AlphaEdit, seed 3"):
        assert f"bench: {name}, 8 edits" in output
    report = json.loads((home / "bench-tiny" / "report.json").read_text())
    assert [(row["editor"], row["edits"]) for row in report["rows"]] == [
        (name, edits) for name in ("unedited", "RLEdit", "LocFT", "AlphaEdit") for edits in (1, 8)
    ]
    assert (
        report["rows"][2]["train_s"] > report["rows"][4]["train_s"] == 0
        and report["settings"]["RLEdit"]["schedule"]["train_steps"] == 1
    )
    again = "".join(lines_of(home, *command))
    assert "bench: RLEdit, seed" not in again and "| RLEdit | 8 | 1 |" in again
    assert json.loads((home / "bench-tiny" / "report.json").read_text())["rows"] == report["rows"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["suite=huge"], "no suite is named 'huge'; there are lifelong, counterfact, ablation, tiny"),
        (["suite=tiny", "editors=ROMEO"], "suite tiny has no ROMEO; it has RLEdit, LocFT, AlphaEdit"),
        (["suite=tiny", "budget=9"], "more settings than these have: RLEdit, LocFT, AlphaEdit"),
        (["suite=tiny", "num_edits=900"], "fewer than 900"),
        (["suite=tiny", "num_edit=9"], "has no field 'num_edit'"),
        (["suite=tiny", "full"], "field=value, or FULL"),
        (["suite=tiny", "batch_size=0"], "at least 1: batch_size"),
        (["suite=tiny", "checkpoints=1,0"], "at least 1: checkpoints 0"),
        (["suite=tiny", "seeds=0,x"], "seeds are whole numbers"),
        (["FULL", "corpus.num_subjects=200", "num_edits=300"], "fewer than 300"),
        (["suite=counterfact", "corpus.directory=/none"], "no file /none/counterfact_edit.json"),
    ],
)
def test_a_wrong_argument_of_a_benchmark_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        from_arguments(arguments)


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("full", [False, True])
def test_every_editor_of_a_suite_has_enough_settings(name: str, full: bool) -> None:
    suite = SUITES[name](full)
    assert all(len(grid.settings) >= suite.budget for grid in suite.grids)
    assert len({grid.name for grid in suite.grids}) == len(suite.grids)
    plans = [suite.plan(setting, 0) for grid in suite.grids for setting in grid.settings if setting.schedule]
    assert len({plan.artifact_dir for plan in plans}) == len(plans)


def test_moments_are_those_of_one_pass_and_start_an_editor(home: Path) -> None:
    command = ["jobs/moments.py", "plan=tiny", "modules=layers.0.mlp.down_proj", "directions=1"]
    assert "moments: 1 matrices over" in "".join(lines_of(home, *command))
    output = "".join(lines_of(home, *command))
    found = Path(re.findall(r"they are there: (\S+)", output)[-1])
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


@pytest.mark.parametrize(
    ("argument", "says"),
    [("texts=many", "number of lines"), ("modules=layers.9.mlp.down_proj", "no linear module"), ("textz=1", "no field")],
)
def test_a_wrong_argument_of_the_moments_is_named(home: Path, argument: str, says: str) -> None:
    model = home / "testbed" / PLANS["tiny"]().digest("corpus", "shape")
    with pytest.raises(ValueError, match=says):
        moments.run(moments.from_command_line(["plan=tiny", f"model={model}", argument]))


@pytest.mark.long
def test_crossed_training_ends_in_the_plans_own_metric(home: Path) -> None:
    """A policy trained on the folds' metrics is used in the one of its plan."""
    arguments = ["plan=tiny", "schedule.train_steps=2", "cross_fit=True", "metric_part=train"]
    output = "".join(lines_of(home, "jobs/train.py", *arguments))
    editor = RLEdit.load(re.findall(r"the policy is in (\S+)", output)[-1])
    plan = replace(PLANS["tiny"](), metric_part="train")
    model = load(home / "testbed" / plan.digest("corpus", "shape"))
    for name, base_II in editor.measure_preconditioners(model, texts(plan, model)).items():
        torch.testing.assert_close(editor.trained_policy().base_preconditioners[name], base_II, rtol=1e-4, atol=1e-6)
