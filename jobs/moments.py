"""Measure second moments of keys: `ray job submit --working-dir . -- python jobs/moments.py plan=NAME modules=…`.

The closed-form editors protect these keys. One pass of the model over text measures any set of matrices: Ray tasks over shards
of the text, whose sums are added in pairs. The text is the plan's `text`, or the sentences that the testbed's model has
learned; if it has more than `texts` lines (100,000 is the published number), a sample of that size is drawn. With
`preset=EDITOR:NAME` the matrices are those of a row of errata/editors/presets.py. With `directions=1` a backward pass also
gives the output directions of O-Edit. The artifact's name holds the model's fingerprint, the text, the number of tokens and the
dtype; an existing artifact is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from errata.durable import new_folder
from errata.editors import make_editor
from errata.editors.closed_form.moments import Moments, leading_outputs
from errata.home import home
from errata.model.key_moments import gradient_sums, key_sums
from errata.model.language_model import LanguageModel, checkpoint_fingerprint, load
from errata.model.matrices import find_matrices
from errata.text.dialogue import Prompt
from jobs import pretrain
from jobs.arguments import check_model, from_arguments, with_checkpoint
from jobs.entry import run_job
from jobs.mlflow_run import log_run, made_from
from jobs.plan import MARK, Plan
from jobs.training_data import encoded_lines, lines
from jobs.workers import start_ray, time_left


@dataclass(frozen=True)
class Sums:
    """Sums over shards by matrix: Σ k kᵀ [I, I], weight gradients [O, I] (empty without `directions`), and tokens."""

    moments: dict[str, Tensor]
    gradients: dict[str, Tensor]
    num_tokens: int

    def __add__(self, other: Sums) -> Sums:
        moments = {name: total + other.moments[name] for name, total in self.moments.items()}
        gradients = {name: total + other.gradients[name] for name, total in self.gradients.items()}
        return Sums(moments, gradients, self.num_tokens + other.num_tokens)


@dataclass(frozen=True)
class Measurement:
    """Matrices to measure, with the plan that names model and text."""

    plan: Plan
    modules: tuple[str, ...]
    directions: bool = False
    texts: int = 100_000

    def model(self) -> LanguageModel:
        return load(self.plan.model_dir, getattr(torch, self.plan.dtype), "auto" if self.plan.use_gpu else "cpu")

    def chosen(self) -> list[tuple[Prompt, str]]:
        return lines(self.plan, self.texts)

    def directory(self, num_tokens: int) -> Path:
        plan = self.plan
        shown = [(str(prompt), answer) for prompt, answer in self.chosen()]
        text = Path(plan.text).read_bytes() if plan.text else json.dumps(shown).encode()
        what = [sorted(self.modules), self.directions, self.texts, plan.seed, hashlib.sha256(text).hexdigest()]
        source = Path(plan.text).stem if plan.text else plan.corpus.name + (f"-{plan.metric_part}" if plan.metric_part else "")
        model = f"{plan.model_dir.name}-{checkpoint_fingerprint(plan.model_dir)[:12]}"
        tail = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
        return home() / "moments" / f"{model}-{source}-{num_tokens}t-{plan.dtype}-{tail}"


@ray.remote
def shard(what: Measurement, names: Sequence[str], index: int, num_shards: int) -> Sums:
    model = what.model()
    texts = encoded_lines(what.plan, model, what.chosen()[index::num_shards])
    sums, count = key_sums(model.module, texts, names, all_tokens=True)
    gradients = gradient_sums(model.module, texts, names) if what.directions else {}
    cpu = [{name: total.cpu() for name, total in found.items()} for found in (sums, gradients)]
    return Sums(cpu[0], cpu[1], count)


@ray.remote
def add(one: Sums, other: Sums) -> Sums:
    return one + other


def run(what: Measurement) -> Path:
    """Measure unless the artifact exists; returns its folder.

    Raises `ValueError` for a pattern in `modules` that matches no matrix, and for missing GPUs.
    """
    replace(what.plan, num_workers=1, min_workers=0).check_gpus()
    check_model(what.plan, what.modules)
    what = replace(what, plan=with_checkpoint(what.plan, what.modules))
    plan = what.plan
    pretrain.run(plan)
    model = load(plan.model_dir)
    names = find_matrices(model.module, what.modules).names
    num_tokens = sum(int(text.attention_mask_BS.sum()) for text in encoded_lines(plan, model, what.chosen()))
    directory = what.directory(num_tokens)
    if directory.exists():
        print(f"moments: already measured: {directory}")
    else:
        make(what, names, directory)
        print(f"moments: {len(names)} matrices over {num_tokens} tokens, in {directory}")
    log_to_mlflow(what, directory)
    return directory


def make(what: Measurement, names: Sequence[str], directory: Path) -> None:
    """Measure and write the artifact; the folder appears whole or not at all."""
    plan, began = what.plan, time.monotonic()
    sums = measure(what, names)
    moments = {name: total / sums.num_tokens for name, total in sums.moments.items()}
    directions = {name: leading_outputs(total) for name, total in sums.gradients.items()}
    record = {
        "model": plan.model_dir.name,
        "fingerprint": checkpoint_fingerprint(plan.model_dir),
        "text": plan.text or plan.corpus.name,
        "num_tokens": sums.num_tokens,
        "dtype": plan.dtype,
        "seconds": time.monotonic() - began,
        "provenance": made_from(plan),
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(directory) as folder:
        Moments(moments, record, directions).save(folder)


def log_to_mlflow(what: Measurement, directory: Path) -> None:
    record = json.loads((directory / "moments.json").read_text())
    params = {"modules": what.modules, "directions": what.directions, "texts": what.texts}
    figures = {name: record[name] for name in ("num_tokens", "seconds")}
    log_run("moments", directory.name, what.plan, record.get("provenance", {}), lambda run: run.log(figures, 0), params)


def measure(what: Measurement, names: Sequence[str]) -> Sums:
    start_ray()
    plan = what.plan
    # With `placement`, nodes may start only on demand, so the number of shards is the plan's number of workers.
    there = int(ray.cluster_resources().get("GPU" if plan.use_gpu else "CPU", 1)) // plan.gpus_per_worker
    num_shards = max(1, plan.num_workers if plan.placement else there)
    resources: dict[str, Any] = {"num_gpus": plan.gpus_per_worker} if plan.use_gpu else {"num_cpus": 1}
    resources["resources"] = {plan.placement: MARK} if plan.placement else {}
    parts: list[Any] = [shard.options(**resources).remote(what, names, index, num_shards) for index in range(num_shards)]
    waiting, started = list(parts), time.monotonic()
    while waiting:
        _, waiting = ray.wait(waiting)
        done = num_shards - len(waiting)
        print(f"moments: {done}/{num_shards} shards are done, {time_left(started, done, num_shards)}", flush=True)
    while len(parts) > 1:  # in pairs, on the nodes that hold the sums
        parts = [add.remote(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    found: Sums = ray.get(parts[0])
    return found


def from_command_line(arguments: Sequence[str]) -> Measurement:
    """Read a measurement from `plan=NAME modules=… field=value ...`. Raises `ValueError` that names a wrong argument."""
    pairs = {name: value for name, _, value in (argument.partition("=") for argument in arguments)}
    own = {name: pairs[name] for name in ("modules", "preset", "directions", "texts") if name in pairs}
    plan = from_arguments([argument for argument in arguments if argument.partition("=")[0] not in own])
    if not own.get("texts", "1").isdigit() or own.get("texts") == "0":
        raise ValueError(f"texts is a number of lines, at least 1, not {own['texts']!r}")
    if plan.dataset and not plan.text:
        raise ValueError(f"plan {plan.name} has no corpus: name a file of text, a line each, text=PATH")
    if "modules" in own and "preset" in own:
        raise ValueError("modules= and preset= both choose the matrices: give one of them")
    modules = tuple(own["modules"].split(",")) if "modules" in own else plan.editor.modules
    if "preset" in own:
        editor, _, preset = own["preset"].partition(":")
        modules = make_editor(editor, preset=preset).modules
    directions = own.get("directions", "0") not in ("", "0", "False")
    return Measurement(plan, modules, directions, int(own.get("texts", "100000")))


if __name__ == "__main__":
    run_job(from_command_line, run)
