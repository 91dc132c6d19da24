"""Jobs as a user runs them: moments of keys, two workers against one, a sweep, a benchmark, a killed worker.

All but the last run in one process and on one Ray: each process would import for seconds, and each Ray starts a dozen others.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from errata.datasets.reader import read_edits
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.hypernet.rledit import RLEdit
from errata.local.services import LOOPBACK, LocalServices
from errata.model.key_moments import gradient_sums, key_sums
from errata.model.language_model import checkpoint_fingerprint, load
from errata.model.matrices import find_matrices
from errata.registry import Registry
from jobs import bench, moments, train
from jobs.arguments import from_arguments as from_plan_arguments
from jobs.plans import PLANS
from jobs.suites import from_arguments
from jobs.training_data import texts
from tests.e2e.job import lines_of, log_of, outward

ARGUMENTS = ["plan=tiny", "schedule.train_steps=12", "checkpoint_every=2"]
# The suite `tiny` needs the moments, and the policy that one worker trains: it finds both.
MOMENTS = ["jobs/moments.py", "plan=tiny", "modules=layers.1.mlp.down_proj", "directions=1"]
TRAIN = ["jobs/train.py", "plan=tiny", "name=RLEdit", "schedule.train_steps=2"]
SWEEP = ["jobs/tune.py", "plan=tiny", "trials=2", "validation=8", "schedule.train_steps=2", "checkpoint_every=1"]
BENCH = ["jobs/bench.py", "suite=tiny", "seeds=3"]
ONE_AFTER_THE_OTHER = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def cluster(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """Start Ray as from a fresh shell, which has none of its variables; its workers write into the jobs' home."""
    with LocalServices(tmp_path_factory.mktemp("cluster")) as services:
        with pytest.MonkeyPatch.context() as shell:
            for name in (*LOOPBACK, "RAY_ADDRESS"):
                shell.delenv(name, raising=False)
            shell.setenv("ERRATA_HOME", str(home))
            services.start_ray()
        services.wait_ray()
        yield services


@pytest.fixture(scope="module")
def output(home: Path, cluster: LocalServices, uri: str) -> str:
    """Run all jobs; returns what they print."""
    commands = [MOMENTS, [*TRAIN, "num_workers=1"], [*TRAIN, "num_workers=2"], [*SWEEP, f"mlflow={uri}"], BENCH]
    return "".join(lines_of(home, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands), cluster=cluster.environment))


def test_the_ray_of_the_local_services_listens_on_loopback(cluster: LocalServices) -> None:
    """A client that reaches Ray's ports can run any code; see test_loopback.py."""
    assert outward(psutil.Process(cluster.processes["ray"].pid)) == []


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


def test_two_workers_train_the_policy_of_one(output: str) -> None:
    """Each has half of the episodes."""
    one, two, *_ = (load_file(Path(folder) / "policy.safetensors") for folder in re.findall(r"the policy is in (\S+)", output))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_sweep_ends_with_a_plan(output: str, home: Path, uri: str) -> None:
    """Its best plan is accepted by train.py, and its runs are nested in MLflow. test_tune.py has a sweep that is killed."""
    (found,) = {path.parent for path in (home / "tune").glob("*/found/best.json") if str(path) in output}
    trials = json.loads((found / "trials.json").read_text())["trials"]
    assert len(trials) == 2 and all(trial["score"] is not None for trial in trials)
    assert "tune: continuing" not in output and (found / "heatmap.png").exists()
    check_runs(Registry(uri, "errata"))
    train.check(from_plan_arguments([f"plan={found / 'best.json'}"]))


def check_runs(registry: Registry) -> None:
    """Check that a sweep of two trials is a run with two nested ones."""
    runs = registry.runs()
    (parent,) = [run for run in runs if run["name"].startswith("tune-")]
    children = [run for run in runs if run["tags"].get("mlflow.parentRunId") == parent["id"]]
    assert len(children) == 2 and all("editor.reward.discount" in run["params"] for run in children)


def test_a_benchmark_is_run_once_and_then_cached(
    output: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RLEdit [2/2], seed 0", "LocFT, seed 3", "AlphaEdit, seed 3", "state, seed 3"):
        assert f"bench: {name}, 8 edits" in output
    report = json.loads((home / "bench-tiny" / "report.json").read_text())
    assert [(row["editor"], row["edits"]) for row in report["rows"]] == [
        (name, edits) for name in ("unedited", "RLEdit", "LocFT", "AlphaEdit", "state") for edits in (1, 8)
    ]
    assert (
        report["rows"][2]["train_s"] > report["rows"][4]["train_s"] == 0
        and report["settings"]["RLEdit"]["schedule"]["train_steps"] == 2
    )
    monkeypatch.setenv("ERRATA_HOME", str(home))
    bench.run_suite(from_arguments(BENCH[1:]))
    again = capsys.readouterr().out
    assert "bench: RLEdit, seed" not in again and "| RLEdit | 8 | 1 |" in again
    assert json.loads((home / "bench-tiny" / "report.json").read_text())["rows"] == report["rows"]


def test_moments_are_those_of_one_pass_and_start_an_editor(output: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "moments: 1 matrices over" in output
    monkeypatch.setenv("ERRATA_HOME", str(home))
    found = moments.run(moments.from_command_line(MOMENTS[1:]))  # does not start Ray, because they are measured
    assert not ray.is_initialized()
    plan = PLANS["tiny"]()
    fingerprint = checkpoint_fingerprint(home / "testbed" / plan.digest("corpus", "shape"))[:12]
    assert f"{fingerprint}-world-20-" in found.name and "-float32-" in found.name
    editor = replace(AlphaEdit.from_artifact(found), context_words=("the",), position="prompt")  # in the last block
    model = load(home / "testbed" / plan.digest("corpus", "shape"))
    sums, count = key_sums(model.module, texts(plan, model), ["model.layers.1.mlp.down_proj"], all_tokens=True)
    assert editor.moments is not None and editor.moments.record["num_tokens"] == count and f"-{count}t-" in found.name
    expected_II = sums["model.layers.1.mlp.down_proj"] / count
    torch.testing.assert_close(editor.moments.by_input["model.layers.1.mlp.down_proj"], expected_II, rtol=1e-4, atol=1e-5)
    assert editor.start(model, find_matrices(model.module, editor.modules)).num_edits == 0
    directions_OO = editor.moments.directions["model.layers.1.mlp.down_proj"]
    grad_OI = gradient_sums(model.module, texts(plan, model), ["model.layers.1.mlp.down_proj"])["model.layers.1.mlp.down_proj"]
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
