"""Measure what the closed-form editors protect: `ray job submit --working-dir . -- python jobs/moments.py plan=NAME modules=…`.

The second moments of the keys of any matrices, in one pass of the model over text: Ray tasks over shards of it, their sums
added in pairs. The text is the plan's `text` or, of a corpus, what its model has learned. The artifact's name holds the model,
the text and the matrices; nothing is measured that is there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from errata.capture import key_sums
from errata.editors.closed_form.moments import Moments
from errata.model import find_matrices, load
from jobs import pretrain
from jobs.plans import Plan, from_arguments, home
from jobs.train import texts
from jobs.workers import start_ray

Sums = tuple[dict[str, Tensor], int]


@ray.remote
def shard(plan: Plan, names: Sequence[str], index: int, num_shards: int) -> Sums:
    model = load(plan.model_dir, getattr(torch, plan.dtype), "cuda" if plan.use_gpu else "cpu")
    sums, count = key_sums(model.module, texts(plan, model)[index::num_shards], names, all_tokens=True)
    return {name: total.cpu() for name, total in sums.items()}, count


@ray.remote
def add(one: Sums, other: Sums) -> Sums:
    return {name: one[0][name] + other[0][name] for name in one[0]}, one[1] + other[1]


def directory_of(plan: Plan, modules: Sequence[str]) -> Path:
    what = [str(plan.model_dir), plan.dtype, plan.text, plan.corpus.name, plan.metric_part, plan.seed, sorted(modules)]
    return home() / "moments" / f"{plan.name}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]}"


def run(plan: Plan, modules: Sequence[str]) -> Path:
    """The folder of the moments; raises `ValueError` naming a pattern of `modules` that the model has no matrix for."""
    pretrain.run(plan)
    directory = directory_of(plan, modules)
    if directory.exists():
        print(f"moments: they are there: {directory}")
        return directory
    names = find_matrices(load(plan.model_dir).module, modules).names
    start_ray()
    num_shards = max(1, int(ray.cluster_resources().get("GPU" if plan.use_gpu else "CPU", 1)))
    resources = {"num_gpus": 1} if plan.use_gpu else {"num_cpus": 1}
    parts: list[Any] = [shard.options(**resources).remote(plan, names, index, num_shards) for index in range(num_shards)]
    while len(parts) > 1:  # in pairs, where the sums are
        parts = [add.remote(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    sums, num_tokens = ray.get(parts[0])
    record = {
        "model": plan.model_dir.name,
        "text": plan.text or plan.corpus.name,
        "num_tokens": num_tokens,
        "dtype": plan.dtype,
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as unfinished:
        Moments({name: total / num_tokens for name, total in sums.items()}, record).save(Path(unfinished) / "moments")
        (Path(unfinished) / "moments").rename(directory)
    print(f"moments: {len(names)} matrices over {num_tokens} tokens, in {directory}")
    return directory


if __name__ == "__main__":
    try:
        given = [argument.removeprefix("modules=") for argument in sys.argv[1:] if argument.startswith("modules=")]
        chosen = from_arguments([argument for argument in sys.argv[1:] if not argument.startswith("modules=")])
        run(chosen, tuple(given[0].split(",")) if given else chosen.editor.modules)
    except ValueError as wrong:
        sys.exit(f"moments.py: {wrong}")
