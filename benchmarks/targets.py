"""Targets of a batch in one forward pass per step, against one edit at a time: `make bench-targets`.

The model is random, of the testbed's shape or larger: how long a step takes does not depend on what a model knows. Both ways
take every step (no edit is finished early), so they do the same work; how far their targets are apart is printed.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.report import console, show, write_report
from errata.edit import EditBatch
from errata.editors.closed_form.subjects import Contexts
from errata.editors.closed_form.targets import Search, find_targets
from errata.hardware import hardware
from errata.model import LanguageModel
from errata.testbed.language_model import Shape, make_model, make_tokenizer
from errata.testbed.world import World

CONTEXTS = Contexts(("", *(f"the {word} river shines. " for word in ("old", "quiet", "narrow", "green", "distant"))))
SEARCH = Search(num_steps=25, learning_rate=0.1, loss_floor=-1.0)


@dataclass(frozen=True)
class Settings:
    """`batches` are numbers of edits; `shapes` (hidden, layers, intermediate); each is timed `repeats` times."""

    batches: tuple[int, ...] = (10, 100)
    shapes: tuple[tuple[int, int, int], ...] = ((256, 4, 768),)
    repeats: int = 3
    search: Search = SEARCH
    num_subjects: int = 150
    seed: int = 0


def make_language_model(shape: tuple[int, int, int], settings: Settings) -> LanguageModel:
    world, (hidden, layers, intermediate) = World(settings.num_subjects), shape
    wanted = replace(Shape(), hidden=hidden, layers=layers, intermediate=intermediate)
    tokenizer = make_tokenizer(world, wanted)
    module = make_model(wanted, len(tokenizer), settings.seed)
    return LanguageModel(module.eval().requires_grad_(False), tokenizer, "random")


def measure(shape: tuple[int, int, int], num_edits: int, settings: Settings) -> dict[str, Any]:
    model = make_language_model(shape, settings)
    edits = World(settings.num_subjects).edits("test", num_edits, settings.seed)
    site = f"model.layers.{shape[1] // 2 - 1}"
    seconds: dict[str, list[float]] = {"batch": [], "single": []}
    for _ in range(settings.repeats):  # in turns, so that a change of the machine's load meets both
        start = time.perf_counter()
        together_nD = find_targets(model, EditBatch(tuple(edits)), site, CONTEXTS, settings.search).wanted_nD
        seconds["batch"].append(time.perf_counter() - start)
        start = time.perf_counter()
        alone = [find_targets(model, EditBatch((edit,)), site, CONTEXTS, settings.search).wanted_nD for edit in edits]
        seconds["single"].append(time.perf_counter() - start)
    alone_nD = torch.cat(alone)
    return {
        "hidden": shape[0],
        "layers": shape[1],
        "num_edits": num_edits,
        "num_sequences": num_edits * (len(CONTEXTS.texts) + 1),
        "seconds_batch": median(seconds["batch"]),
        "seconds_one_by_one": median(seconds["single"]),
        "ratio": median(seconds["single"]) / median(seconds["batch"]),
        "ms_per_edit_batch": 1e3 * median(seconds["batch"]) / num_edits,
        "difference": float((alone_nD - together_nD).norm() / alone_nD.norm()),
    }


def run(settings: Settings, command: str) -> Path:
    """Everything, printed and written to `$ERRATA_HOME/bench-targets/report.json`."""
    about = {"command": command, "seed": settings.seed, "hardware": hardware()}
    console.print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    rows = [measure(shape, num_edits, settings) for shape in settings.shapes for num_edits in settings.batches]
    show(f"{settings.search.num_steps} steps, {len(CONTEXTS.texts)} contexts and an anchor for each edit", rows, NOTE)
    return write_report("bench-targets", rows, **about, settings=asdict(settings))


NOTE = "one by one: a search for each edit, as the public code does. difference: of the targets, relative to their norm."


def main() -> None:
    parser = argparse.ArgumentParser(description="Targets of a batch at once, against one edit at a time.")
    parser.add_argument("--seed", type=int, default=0)
    seed, full = parser.parse_args().seed, os.environ.get("FULL", "") not in ("", "0")
    settings = Settings(seed=seed)
    if full:
        settings = replace(settings, shapes=(*settings.shapes, (768, 12, 2304)))
    run(settings, f"{'FULL=1 ' if full else ''}make bench-targets ARGS=--seed={seed}")


if __name__ == "__main__":
    main()
