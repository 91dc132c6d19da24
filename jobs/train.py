"""Train the policy of an editor: `ray job submit --working-dir . -- python jobs/train.py plan=demo field=value`.

Each worker computes its own episodes on its own copy of the frozen model; gradients and losses are summed. A lost worker or
node is replaced, or training continues with fewer (`min_workers`), from the last checkpoint. A job that is started again also
continues there. The policy is an artifact with plan, seed and training curve, in $ERRATA_HOME and, with `mlflow=`, in MLflow.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import ray.train
import torch

from errata.datasets.reader import read_edits, write_parquet
from errata.durable import new_folder
from errata.edit import Edit, EditBatch, batches_of
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.training import Fold, Trainer
from errata.editors.memory_based.trained import MemoryTrainer, TrainedMemory
from errata.editors.trained_editor import TrainedEditor
from errata.model.language_model import LanguageModel, load
from errata.provenance import data_digest
from errata.registry import TrainingRun
from errata.testbed.corpus import FOLDS
from jobs import pretrain
from jobs.arguments import main
from jobs.mlflow_run import log_run, made_from
from jobs.plan import Plan
from jobs.training_data import check_data, edits_file, edits_of, splits, texts
from jobs.workers import (
    checkpoint_files,
    latest_checkpoint,
    own_device,
    run_on_workers,
    set_threads,
    sum_over_workers,
    time_left,
)

# The normaliser and the initial scales are set on so many batches, with at least so many edits.
NUM_FIRST_BATCHES, NUM_FIRST_EDITS = 10, 100


def work(config: dict[str, Any]) -> None:
    """Train the policy in one Ray Train worker.

    Beside the entries of `run_on_workers`, `config` may have `score(model, editor)`, which gives figures to report at each
    checkpoint, `provenance` for the artifact's record, and `keep=False` to save no artifact.
    """
    plan: Plan = config["plan"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    set_threads(config["share"], context.get_local_world_size())
    model = load(plan.model_dir, getattr(torch, plan.dtype), own_device(plan))
    began = time.monotonic()
    editor, trainer = trainer_of(plan, model)
    curve: list[dict[str, float]] = []
    spent = 0.0  # seconds before this worker took over
    saved = latest_checkpoint()
    if saved is not None:
        trainer.load_state_dict(saved["trainer"])
        curve, spent = saved["curve"], saved.get("train_s", 0.0)
    started, first_step, total = time.monotonic(), trainer.train_step, plan.schedule.train_steps

    def report(losses: dict[str, float]) -> None:
        state = {"trainer": trainer.state_dict(), "curve": curve, "train_s": spent + time.monotonic() - began}
        scores = config["score"](model, editor) if rank == 0 and "score" in config else {}
        with checkpoint_files(state if rank == 0 else None) as checkpoint:
            ray.train.report({"train_step": trainer.train_step, **losses, **scores}, checkpoint=checkpoint)

    if saved is not None and first_step == total:  # the driver that received the last report may be gone
        report({name: value for name, value in curve[-1].items() if name not in ("train_step", "num_workers")})
    while trainer.train_step < total:
        losses = trainer.step(rank, num_workers, sum_over_workers if num_workers > 1 else lambda tensors: None)
        done = trainer.train_step
        curve.append({"train_step": done, "num_workers": num_workers, **losses})
        if rank == 0:
            left = time_left(started, done - first_step, total - first_step)
            print(f"train: {done}/{total}  {described(losses)}  workers {num_workers}  {left}", flush=True)
        if done % plan.checkpoint_every == 0 or done == total:
            report(losses)
    if rank == 0 and config.get("keep", True):
        train_s = spent + time.monotonic() - began
        save_artifact(plan, editor, curve, num_workers, train_s, config.get("provenance", {}))


def described(losses: dict[str, float]) -> str:
    """Format the losses of a training step."""
    if "edit_loss" not in losses:
        return ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
    return (
        f"edit loss {losses['edit_loss']:.3f}, locality KL {losses['locality_kl']:.3f}, |update|² {losses['update_norm2']:.3g}"
    )


def trainer_of(plan: Plan, model: LanguageModel) -> tuple[TrainedEditor[Any], Trainer | MemoryTrainer]:
    """Initialise the plan's editor, and the training of its policy."""
    if isinstance(plan.editor, TrainedMemory):
        memory, schedule = plan.editor.initialised(model, plan.seed), plan.schedule
        parts = [plan.metric_part] if plan.metric_part in FOLDS else splits(plan)  # A sweep scores on the other fold.
        edits = [edit for part in parts for edit in read_edits(edits_file(plan, part))]
        length = schedule.train_steps, schedule.episodes, schedule.batch_size
        return memory, MemoryTrainer(memory, model, edits, length, plan.seed)
    editor, folds = begin(plan, model)
    return editor, Trainer(editor, model, folds, plan.schedule, plan.seed, plan.savings)


def begin(plan: Plan, model: LanguageModel) -> tuple[HypernetworkEditor, list[Fold]]:
    """Initialise a hypernetwork with its key preconditioner, and the folds of edits for its episodes.

    The initial scales are set under the conditions of training.
    """
    hypernetwork = plan.hypernetwork
    edits = [list(read_edits(edits_file(plan, split))) for split in splits(plan)]
    first, micro_batch = first_batches(plan, edits[0]), plan.savings.micro_batch
    if not plan.cross_fit:
        editor = hypernetwork.initialised(model, texts(plan, model), first, plan.seed, micro_batch)
        return editor, [Fold(edits[0], editor.trained_policy().base_preconditioners)]
    crossed = [texts(replace(plan, metric_part=part), model) for part in reversed(FOLDS)]
    editor = hypernetwork.initialised(model, crossed[0], first, plan.seed, micro_batch)
    folds = [Fold(own, editor.measure_preconditioners(model, text)) for own, text in zip(edits, crossed, strict=True)]
    return editor.with_preconditioners(editor.measure_preconditioners(model, texts(plan, model))), folds


def first_batches(plan: Plan, edits: Sequence[Edit]) -> list[EditBatch]:
    """Batches on which the normaliser and the initial scales are set."""
    size = plan.schedule.batch_size
    return list(batches_of(edits[: size * max(NUM_FIRST_BATCHES, ceil(NUM_FIRST_EDITS / size))], size))


def save_artifact(
    plan: Plan,
    editor: TrainedEditor[Any],
    curve: list[dict[str, float]],
    num_workers: int,
    train_s: float,
    provenance: Mapping[str, Any],
) -> None:
    """Save the policy; its folder appears whole or not at all. `train_s` counts from the moment the model is loaded."""
    if plan.artifact_dir.exists():  # a worker was lost after it had been saved
        return
    described_plan = dataclasses.asdict(replace(plan, editor=editor.without_policy()))
    record = {
        "plan": described_plan,
        "seed": plan.seed,
        "num_workers": num_workers,
        "train_s": train_s,
        "model": str(plan.model_dir.name),
        "curve": curve,
        "provenance": dict(provenance),
    }
    plan.artifact_dir.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(plan.artifact_dir) as folder:
        editor.save(folder, record)


def prepare(plan: Plan) -> None:
    """Make the testbed's model and streams of training edits unless they exist."""
    pretrain.run(plan)
    for split in splits(plan):
        if not plan.edits and not Path(edits_file(plan, split)).exists():
            write_parquet(edits_of(plan, split), edits_file(plan, split))


def run_name(plan: Plan) -> str:
    """Name of the Ray Train run that holds the checkpoints."""
    return f"train-{plan.name}-{plan.digest()}"


def check(plan: Plan) -> None:
    """Raise `ValueError` or `FileNotFoundError` for a plan that cannot be trained."""
    plan.schedule.check_workers(plan.num_workers)
    if plan.dataset:
        check_data(plan)


def check_files(plan: Plan) -> None:
    """Raise `ValueError` if files that the policy was trained on have changed; its name contains only their paths."""
    record = json.loads((plan.artifact_dir / "artifact.json").read_text())["record"]
    had = record.get("provenance", {}).get("data", {})
    files = {"text": plan.text} if plan.text else {}
    files |= {f"edits.{split}": edits_file(plan, split) for split in splits(plan)} if plan.edits else {}
    if changed := sorted({where for name, where in files.items() if name in had and data_digest(where) != had[name]}):
        raise ValueError(
            f"the policy in {plan.artifact_dir} was trained when {', '.join(changed)} had another content: "
            "give the changed file another name, or remove that folder"
        )


def run(plan: Plan) -> None:
    """Train the plan's policy unless it exists, and log it."""
    check(plan)
    if plan.artifact_dir.exists():
        check_files(plan)
        print(f"train: the policy exists: {plan.artifact_dir}")
    else:
        prepare(plan)
        edits = {f"edits.{split}": edits_file(plan, split) for split in splits(plan)}
        run_on_workers(work, plan, run_name(plan), {"provenance": made_from(plan, edits)})
        print(f"train: the policy is in {plan.artifact_dir}")
    log_to_mlflow(plan)


def log_to_mlflow(plan: Plan) -> None:
    record = json.loads((plan.artifact_dir / "artifact.json").read_text())["record"]

    def fill(run: TrainingRun) -> None:
        for point in record["curve"]:
            run.log({k: v for k, v in point.items() if k != "train_step"}, int(point["train_step"]))
        run.artifact(plan.artifact_dir, "policy")

    log_run("train", plan.artifact_dir.name, plan, record.get("provenance", {}), fill)


if __name__ == "__main__":
    main(run, check)
