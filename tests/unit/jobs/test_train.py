"""Training: checks before it starts, artifacts that are written once, and files that have changed since."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.datasets.reader import write_parquet
from errata.editors import load_artifact
from errata.editors.memory_based.trained import MemoryTrainer
from errata.model.language_model import load
from errata.testbed import language_model as testbed
from errata.testbed.corpus import FOLDS
from jobs import pretrain, train, training_data
from jobs.arguments import from_arguments
from jobs.mlflow_run import made_from
from jobs.plan import Plan
from jobs.plans import recipe, serac, tiny


def test_more_workers_than_episodes_are_refused(home: Path) -> None:
    with pytest.raises(ValueError, match=r"3 workers cannot share 2 episodes: raise schedule\.episodes"):
        train.run(from_arguments(["plan=tiny", "num_workers=3"]))
    assert not list(home.iterdir())


def test_a_saved_artifact_is_not_written_again(home: Path) -> None:
    plan = tiny()
    tokenizer = testbed.make_tokenizer(plan.corpus, plan.shape)
    model = testbed.make_model(plan.shape, len(tokenizer), 0)
    for _ in range(2):
        pretrain.finish(plan, model, tokenizer, plan.corpus, {})
    loaded = load(plan.model_dir)
    write_parquet(plan.corpus.stream("train"), training_data.edits_file(plan))
    editor, _ = train.begin(plan, loaded)
    for curve in ([{"train_step": 1}], []):
        train.save_artifact(plan, editor, curve, 1, 0.0, {})
    assert json.loads((plan.artifact_dir / "artifact.json").read_text())["record"]["curve"] == [{"train_step": 1}]


@pytest.mark.parametrize("make", [recipe, serac])
def test_a_memory_with_a_policy_is_trained_by_its_plan(home: Path, make: Callable[[], Plan]) -> None:
    """The first step is that of the plan's seed, and the artifact holds the policy after it."""
    plan = replace(make(), corpus=tiny().corpus, shape=tiny().shape)
    schedule = replace(plan.schedule, batch_size=8)  # A fold of the tiny world has 18 edits.
    plan = replace(plan, editor=replace(plan.editor, modules=("layers.1.mlp.down_proj",)), schedule=schedule)
    tokenizer = testbed.make_tokenizer(plan.corpus, plan.shape)
    pretrain.finish(plan, testbed.make_model(plan.shape, len(tokenizer), 0), tokenizer, plan.corpus, {})
    loaded = load(plan.model_dir)
    write_parquet(plan.corpus.stream("train"), training_data.edits_file(plan))
    (editor, trainer), (_, again) = (train.trainer_of(plan, loaded) for _ in range(2))
    losses = trainer.step()
    assert isinstance(trainer, MemoryTrainer) and losses == again.step()
    folds = [list(plan.corpus.stream(fold)) for fold in FOLDS]
    for fold, edits in zip(FOLDS, folds, strict=True):
        write_parquet(edits, training_data.edits_file(plan, fold))
    for part, expected in (("", [*folds[0], *folds[1]]), (FOLDS[0], folds[0])):  # A sweep scores on the second fold.
        _, of_folds = train.trainer_of(replace(plan, cross_fit=True, metric_part=part), loaded)
        assert isinstance(of_folds, MemoryTrainer) and of_folds.edits == expected
    assert train.described(losses) == ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
    train.save_artifact(plan, editor, [{"train_step": 1, **losses}], 1, 0.0, {})
    saved, record = load_artifact(plan.artifact_dir)
    assert saved == editor and record["curve"] == [{"train_step": 1, **losses}]
    for name, tensor in saved.trained_policy().state_dict().items():
        assert torch.equal(tensor, trainer.net.state_dict()[name]), name


def test_edits_of_a_plan_may_be_at_a_uri(home: Path) -> None:
    assert (
        training_data.edits_file(from_arguments(["plan=tiny", "edits=s3://bucket/edits.parquet"]))
        == "s3://bucket/edits.parquet"
    )
    assert training_data.edits_file(tiny(), "train-a") == str(home / "streams" / "world-20-train-a.parquet")


def test_a_policy_whose_edits_or_text_have_changed_is_refused(home: Path, tmp_path: Path) -> None:
    edits, text = tmp_path / "edits.jsonl", tmp_path / "text.txt"
    edits.write_text('{"prompt": "a", "target": "b"}\n')
    text.write_text("A sentence.\n")
    plan = replace(tiny(), edits=str(edits), text=str(text))
    plan.artifact_dir.mkdir(parents=True)
    record = {"curve": [], "provenance": made_from(plan, {"edits.train": str(edits)})}
    (plan.artifact_dir / "artifact.json").write_text(json.dumps({"record": record}))
    train.run(plan)
    for file in (edits, text):
        before = file.read_bytes()
        file.write_bytes(before * 2)
        with pytest.raises(ValueError, match=f"was trained when {file} had another content"):
            train.run(plan)
        file.write_bytes(before)
    train.run(plan)
    (plan.artifact_dir / "artifact.json").write_text(json.dumps({"record": {"curve": []}}))  # of an earlier version
    train.run(plan)
