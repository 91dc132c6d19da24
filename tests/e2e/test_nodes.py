"""Training that is submitted to three nodes, one of which is lost."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from safetensors.torch import load_file

from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Trainer
from errata.model.language_model import load
from errata.testbed import language_model as testbed
from jobs import pretrain, train
from jobs.arguments import from_arguments
from jobs.mlflow_run import made_from
from jobs.plan import Plan
from tests.e2e.cluster import Cluster
from tests.e2e.job import LONGEST_S, ended_after

STEPS = 16
ARGUMENTS = ["plan=tiny", "num_workers=3", "min_workers=2", f"schedule.train_steps={STEPS}", "checkpoint_every=2"]
ARGUMENTS += ["schedule.episodes=6", "schedule.batches=4"]  # Steps that last long enough for a kill between them.
PROGRESS = re.compile(rf"pid=(\d+).*train: (\d+)/{STEPS} .*workers (\d).*about \d+ s left")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.delenv("ERRATA_STORAGE", raising=False)
    return tmp_path


@pytest.fixture
def cluster(home: Path) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="errata-", dir="/tmp"))
    found = Cluster(folder, {"ERRATA_HOME": str(home)})
    try:
        for _ in range(3):
            found.add_node()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def make_model(plan: Plan) -> None:
    """Save a random model in the place of the plan's; its knowledge does not matter here."""
    tokenizer = testbed.make_tokenizer(plan.corpus, plan.shape)
    model = testbed.make_model(plan.shape, len(tokenizer), plan.seed)
    pretrain.finish(plan, model, tokenizer, plan.corpus, made_from(plan))


@pytest.mark.long
def test_training_survives_the_loss_of_a_node(cluster: Cluster, tmp_path: Path) -> None:
    """Training with `min_workers` resumes from its last checkpoint with the two workers that still fit."""
    plan = from_arguments(ARGUMENTS)
    make_model(plan)
    job = cluster.submit("python", "jobs/train.py", *ARGUMENTS)
    ended_after(LONGEST_S, job)
    lines: list[str] = []
    progress: list[tuple[int, int]] = []  # train_step, number of workers
    lost_at = lost = 0.0
    assert job.stdout is not None
    for line in job.stdout:
        lines.append(line)
        if not (found := PROGRESS.search(line)):
            continue
        progress.append((int(found[2]), int(found[3])))
        if not lost and progress[-1][0] >= 5:
            node = cluster.node_of(int(found[1]))
            cluster.kill(node if node != cluster.nodes[0] else cluster.nodes[1])
            lost, lost_at = progress[-1][0], time.monotonic()
        elif progress[-1][1] == 2 and progress[-2][1] == 3:
            print(f"a node was lost at train_step {lost}; {time.monotonic() - lost_at:.0f} s later: {progress[-1]}")
    assert job.wait(timeout=60) == 0, "".join(lines[-80:])

    after = [step for step, workers in progress if workers == 2]
    assert progress[0] == (1, 3) and after and 1 < after[0] < STEPS, progress
    assert sorted(set(after)) == list(range(after[0], STEPS + 1)), progress
    record = json.loads((plan.artifact_dir / "artifact.json").read_text())["record"]
    assert [point["train_step"] for point in record["curve"]] == list(range(1, STEPS + 1))
    assert [workers for workers, _ in groupby(point["num_workers"] for point in record["curve"])] == [3, 2]
    assert RLEdit.load(plan.artifact_dir).trained_policy().base_preconditioners
    compare_with_one_worker(plan, record["curve"], tmp_path)


def compare_with_one_worker(plan: Plan, curve: list[dict[str, float]], folder: Path) -> None:
    """Compare the policy and the curve with those of an undisturbed run."""
    model = load(plan.model_dir)
    editor, folds = train.begin(plan, model)
    editor.save(folder / "untrained", {})
    trainer = Trainer(editor, model, folds, plan.schedule, plan.seed)
    alone = [trainer.step() for _ in range(STEPS)]
    editor.save(folder / "alone", {})
    untrained, expected, found = (
        load_file(where / "policy.safetensors") for where in (folder / "untrained", folder / "alone", plan.artifact_dir)
    )
    size = sum(float((expected[name] - untrained[name]).square().sum()) for name in expected) ** 0.5
    off = sum(float((expected[name] - found[name]).square().sum()) for name in expected) ** 0.5
    worst = max(abs(point[name] / losses[name] - 1) for point, losses in zip(curve, alone, strict=True) for name in losses)
    print(f"off by {off / size:.2g} of what training changed, losses by {worst:.2g}")
    assert off < 1e-3 * size and worst < 1e-3
