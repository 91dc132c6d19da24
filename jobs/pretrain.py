"""Train the testbed's model: `python jobs/pretrain.py plan=demo`. Data-parallel on Ray Train, unless the model exists.

A killed run continues from its last checkpoint when it is started again. The model's provenance is in its `record.json`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import ray.train
import ray.train.torch
import torch

from errata.durable import new_folder
from errata.guard.probes import FILE as PROBES
from errata.model.encoding import Encoded
from errata.testbed import language_model as testbed
from errata.testbed import smollm2
from errata.testbed.corpus import Corpus, probes_of
from jobs.arguments import main
from jobs.mlflow_run import log_run, made_from
from jobs.plan import Plan
from jobs.workers import checkpoint_files, latest_checkpoint, run_on_workers, set_threads, time_left

RECORD = "record.json"


def work(config: dict[str, Any]) -> None:
    """Train the model in one Ray Train worker."""
    plan: Plan = config["plan"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    set_threads(config["share"], context.get_local_world_size())
    corpus, shape = plan.corpus, plan.shape
    tokenizer = testbed.make_tokenizer(corpus, shape)
    plain = testbed.make_model(shape, len(tokenizer), plan.seed)
    plain.to(device := ray.train.torch.get_device())
    model = torch.nn.parallel.DistributedDataParallel(plain) if num_workers > 1 else plain
    optimizer = testbed.make_optimizer(model)
    first_step = 0
    saved = latest_checkpoint()
    if saved is not None:
        plain.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first_step = saved["step"]
    started = time.monotonic()

    def after_step(step: int, loss: float) -> None:
        done = step + 1
        if done % 20 and done != shape.train_steps:
            return
        if rank == 0:
            left = time_left(started, done - first_step, shape.train_steps - first_step)
            print(f"pretrain: step {done}/{shape.train_steps}, loss {loss:.3f}, {left}", flush=True)
        metrics = {"loss": loss, "step": done}
        if done % 100 and done != shape.train_steps:
            return
        state = {"model": plain.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
        with checkpoint_files(state if rank == 0 else None) as checkpoint:
            ray.train.report(metrics, checkpoint=checkpoint)

    sentences: Encoded = testbed.training_sentences(corpus, tokenizer, device)
    state, worker = testbed.TrainingState(optimizer, first_step), testbed.Worker(rank, num_workers)
    testbed.train(model, sentences, shape, plan.seed, state, worker, after_step)
    if rank == 0:
        finish(plan, plain, tokenizer, corpus, config.get("provenance", {}))


def finish(plan: Plan, model: Any, tokenizer: Any, corpus: Corpus, provenance: Mapping[str, Any]) -> None:
    """Save the model; its folder appears whole or not at all."""
    if plan.model_dir.exists():  # saved before a worker was lost
        return
    model.eval()
    knows = {"recall": testbed.recall(model, tokenizer, corpus.sentences())}
    print(f"pretrain: the model knows {knows['recall']:.1%} of its corpus", flush=True)
    if notes := corpus.notes(held_out=True):
        knows["reads"] = testbed.recall(model, tokenizer, notes)
        print(f"pretrain: after a note it answers {knows['reads']:.1%} of the prompts by it", flush=True)
    made = {"corpus": dataclasses.asdict(plan.corpus), "shape": dataclasses.asdict(plan.shape)}
    record = {**made, "seed": plan.seed, **knows, "provenance": dict(provenance)}
    plan.model_dir.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(plan.model_dir) as folder:
        testbed.save(model, tokenizer, folder)
        probes_of(corpus).save(folder / PROBES)
        (folder / RECORD).write_text(json.dumps(record, indent=1))


def run(plan: Plan) -> None:
    if plan.model == smollm2.NAME:
        print(f"pretrain: nothing to do, because the plan's model is {smollm2.fetched()}")
        return
    if plan.model:
        print(f"pretrain: nothing to do, because the plan names a model ({plan.model})")
        return
    if plan.model_dir.exists():
        if not (plan.model_dir / PROBES).exists():  # a model of an earlier version
            probes_of(plan.corpus).save(plan.model_dir / PROBES)
        print(f"pretrain: the model exists: {plan.model_dir}")
    else:
        name = f"pretrain-{plan.digest('corpus', 'shape')}"
        run_on_workers(work, plan, name, {"provenance": made_from(plan)})
        print(f"pretrain: the model is in {plan.model_dir}")
    log_to_mlflow(plan)


def log_to_mlflow(plan: Plan) -> None:
    path = plan.model_dir / RECORD
    if path.exists():  # models of earlier versions have no record
        record = json.loads(path.read_text())
        name, figures = f"model-{plan.model_dir.name}", {key: record[key] for key in ("recall", "reads") if key in record}
        log_run("pretrain", name, plan, record["provenance"], lambda run: run.log(figures, 0))


if __name__ == "__main__":
    main(run)
