"""Device memory of a training episode, by parts, and of an editor in service: `make bench-memory`.

The training and editing code runs unchanged on tensors with sizes and without values (benchmarks/accounting.py): the model of
a plan in its own dtype, one episode and one step of Adam, for each memory option. The error of the count is measured on a
small model, which the same code also trains with values (benchmarks/memory_check.py).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.accounting import Accounting, fakes
from benchmarks.memory_check import Check, check_rows
from benchmarks.report import console, show, write_report
from benchmarks.sized_training import DEVICE, PARTS, SizedTrainer, Texts, count_episode, model_of, scored_once, trainer_of
from errata.edit import EditBatch
from errata.editors.hypernet.reward import MemoryOptions
from errata.editors.state import EditorState
from errata.hardware import hardware
from errata.model.matrices import fused_partners
from errata.model.prefix_cache import BatchCache, PrefixCache
from errata.overrides import overridden
from jobs.arguments import from_arguments, with_checkpoint
from jobs.plan import Plan

GPU_GIB = 79.0  # of an 80 GB GPU, available to a process beside the CUDA context


def episode_rows(plan: Plan, texts: Texts, ways: Sequence[MemoryOptions]) -> list[dict[str, Any]]:
    """Peak memory of an episode by part, one row per memory option."""
    rows = []
    for savings in ways:
        console().print(f"an episode with {savings} ...", highlight=False)
        counted = count_episode(replace(scored_once(plan), savings=savings), texts, partial(model_of, plan))
        gib = {part: counted.parts.get(part, 0) / 2**30 for part in PARTS}
        total = counted.peak_bytes / 2**30
        rows.append({**asdict(savings), "peak_gib": total, "left_gib": GPU_GIB - total, **gib})
    return rows


def ways_of(plan: Plan) -> list[MemoryOptions]:
    """List the memory options to compare: none, each alone, the plan's, and all."""
    most = MemoryOptions(micro_batch=plan.savings.micro_batch or 64, recompute=True, on_host=True)
    alone = [replace(MemoryOptions(), **{name: value}) for name, value in asdict(most).items()]
    return list(dict.fromkeys([MemoryOptions(), *alone, plan.savings, most]))


def serving_rows(plan: Plan, texts: Texts, batch_sizes: Sequence[int] = (16, 100)) -> list[dict[str, Any]]:
    """List the memory of an edit worker and of a replica for a policy of the plan, and of a batch of edits."""
    itemsize = getattr(torch, plan.dtype).itemsize
    with fakes(), Accounting(DEVICE) as accounting:
        model = model_of(plan, DEVICE)
        model_bytes = accounting.now_bytes
        trainer = trainer_of(plan, model, texts, DEVICE)
        spec = trainer.net.spec
        editing = {f"a batch of {n} edits, at most": _edit_bytes(accounting, trainer, n) for n in batch_sizes}
    policy = sum(t.nbytes for t in (*trainer.net.parameters(), *trainer.net.buffers()))
    entries = sum(m.num_in * m.num_out for m in spec.matrices)
    partners = {name for matrix in spec.names for name in fused_partners(matrix)}
    fused_entries = sum(model.module.get_submodule(name).weight.numel() for name in partners)
    widths = [len(base_II) for base_II in trainer.folds[0].base_preconditioners.values()] if plan.hypernetwork.memory else []
    keys = 1000 * texts.answers
    whitened = sum(8 * min(keys, width // 2 + 1) * width for width in widths)
    parts = {
        "edit worker": {
            f"the model, in {plan.dtype}": model_bytes,
            "the policy, in fp32": policy,
            "its metric, in fp64": sum(8 * width**2 for width in widths),
            "base of the edited matrices": itemsize * entries,
            "their fp32 sums": 4 * entries,
            "keys of 1,000 past edits, in fp32": 4 * keys * sum(widths),
            "the same whitened, in fp64": whitened,
            **editing,
        },
        "replica, in host memory": {
            "base of the edited matrices and their partners": itemsize * fused_entries,
            "fp32 sums of the edited ones": 4 * entries,
        },
    }
    return [{"where": where, "what": what, "gib": n / 2**30} for where, found in parts.items() for what, n in found.items()]


def _edit_bytes(accounting: Accounting, trainer: SizedTrainer, num_edits: int) -> int:
    """Peak bytes that a batch of edits adds."""
    batch, net, model = EditBatch(tuple(trainer.texts.edits(num_edits))), trainer.net, trainer.model
    encoded = trainer.texts.encoded(num_edits, model.device)
    cache = BatchCache(encoded, PrefixCache(model.module, net.spec.names))
    gc.collect()
    before = accounting.peak_bytes = accounting.now_bytes
    trainer.editor.edit(model, batch, EditorState(), cache)
    return accounting.peak_bytes - before


NOTE = (
    f"GiB at the peak of an episode and the optimiser's step. left: of the {GPU_GIB:g} of an 80 GB GPU beside its context.\n"
    "model's graph: values that the passes behind the prefix cache keep for the gradient, and other intermediate values."
)
CHECK_NOTE = (
    "bytes that an episode adds to model, policy and Adam. resident: as Linux counts them, in a fresh process; error: of the\n"
    "count without values, relative to resident."
)


def run(plan: Plan, texts: Texts, check: Check, command: str) -> Path:
    """Measure, print and write `$ERRATA_HOME/bench-memory/report.json`."""
    about = {"command": command, "seed": plan.seed, "hardware": hardware(), "texts": asdict(texts)}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    found = check_rows(plan, check, [MemoryOptions(), plan.savings])
    show("The count against resident memory, on a small model", found, CHECK_NOTE)
    serving = serving_rows(plan, texts)
    show(f"An editor of plan {plan.name} in service", serving)
    rows = episode_rows(plan, texts, ways_of(plan))
    size = f"{plan.schedule.batches} x {plan.schedule.batch_size}"
    show(f"An episode of plan {plan.name}, {size} edits", rows, NOTE)
    return write_report("bench-memory", rows, **about, check=found, serving=serving)


def main(arguments: Sequence[str]) -> None:
    own = [argument for argument in arguments if argument.startswith("texts.")]
    texts = Texts()
    for argument in own:
        name, _, value = argument.partition("=")
        texts = overridden(texts, name.removeprefix("texts."), value)
    rest = [argument for argument in arguments if argument not in own]
    plan = from_arguments(rest if any(a.startswith("plan=") for a in rest) else ["plan=llama3_8b", *rest])
    plan = with_checkpoint(plan, plan.editor.modules)
    run(plan, texts, Check(), f"make bench-memory ARGS='{' '.join(arguments)}'")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as wrong:
        sys.exit(f"device_memory: {wrong}")
