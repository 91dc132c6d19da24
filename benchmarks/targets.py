"""Targets of a batch in one forward pass per step, against one edit at a time: `make bench-targets`.

The model is random, of the testbed's shape or larger, because the time of a step does not depend on the weights. All ways take
every step (no edit finishes early), so they find the same targets; the largest difference is printed. `plain` is the search of
the public code: one edit at a time, and in every step the whole model over whole rows.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import console, show, write_report
from errata.edit import Edit, EditBatch
from errata.editors.closed_form.contexts import Contexts, Position, tokenise_at_subject
from errata.editors.closed_form.targets import Search, find_targets
from errata.hardware import hardware
from errata.model.language_model import LanguageModel
from errata.testbed.language_model import Shape, make_model, make_tokenizer
from errata.testbed.world import World
from jobs.entry import run_job

CONTEXTS = Contexts(("", *(f"the {word} river shines. " for word in ("old", "quiet", "narrow", "green", "distant"))))
SEARCH = Search(num_steps=25, learning_rate=0.1, loss_floor=-1.0)


@dataclass(frozen=True)
class TargetsSettings:
    """Batch sizes, shapes (hidden, layers, intermediate) and repeats; one edit at a time is timed on `num_alone` edits.

    At the subject, prompts have five contexts and the target is the output of a middle block, as in the papers; at the prompt's
    last token, they have none and it is the last block's, as on the testbed.
    """

    batches: tuple[int, ...] = (10, 100)
    shapes: tuple[tuple[int, int, int], ...] = ((256, 4, 768),)
    repeats: int = 3
    num_alone: int = 10
    search: Search = SEARCH
    num_subjects: int = 150
    seed: int = 0


def make_language_model(shape: tuple[int, int, int], settings: TargetsSettings) -> LanguageModel:
    world, (hidden, layers, intermediate) = World(settings.num_subjects), shape
    wanted = replace(Shape(), hidden=hidden, layers=layers, intermediate=intermediate)
    tokenizer = make_tokenizer(world, wanted)
    module = make_model(wanted, len(tokenizer), settings.seed)
    return LanguageModel(module.eval().requires_grad_(False), tokenizer, "random")


def plain_target(model: LanguageModel, edit: Edit, site: str, contexts: Contexts, search: Search) -> Tensor:
    """Optimise the target of one edit, [1, D], by whole passes over whole rows."""
    rows = tokenise_at_subject(model, EditBatch((edit,)), contexts, search.eos)
    encoded, position_B = rows.encoded, rows.position_B
    inputs = {"input_ids": encoded.input_ids_BS, "attention_mask": encoded.attention_mask_BS, "use_cache": False}
    anchor = (
        model.tokenizer(f"{edit.subject} is a", return_tensors="pt")["input_ids"] if contexts.position == "subject" else None
    )
    anchor_place = torch.tensor([len(model.tokenizer(edit.subject)["input_ids"]) - 1])
    module, seen = model.module.get_submodule(site), list[Tensor]()

    def passed(change_D: Tensor, at_B: Tensor, **given: Any) -> Tensor:
        def add(_m: Any, _a: Any, output: Any) -> Any:
            tensor = output[0] if isinstance(output, tuple) else output
            seen[:] = seen or [tensor[0, at_B[0]].detach().clone()]
            tensor = tensor.index_put((torch.arange(len(at_B)), at_B), change_D.expand(len(at_B), -1), accumulate=True)
            return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

        handle = module.register_forward_hook(add)
        log_probs_BSV: Tensor = model.module(**given).logits.float().log_softmax(-1)
        handle.remove()
        return log_probs_BSV

    change_D = torch.zeros(model.module.config.hidden_size, requires_grad=True)
    with torch.no_grad():
        passed(change_D, position_B, **inputs)
        base_V = passed(change_D, anchor_place, input_ids=anchor)[0, -1] if anchor is not None else None
    optimizer, norm = torch.optim.Adam([change_D], lr=search.learning_rate), seen[0].norm()
    for _ in range(search.num_steps - 1):
        log_probs_BSV = passed(change_D, position_B, **inputs)
        picked_BS = log_probs_BSV[:, :-1].gather(2, encoded.input_ids_BS[:, 1:, None])[..., 0]
        answer_BS = encoded.predicts_BS[:, :-1]
        loss = (-(picked_BS * answer_BS).sum(1) / answer_BS.sum(1)).mean() + search.decay * change_D.norm() / norm.square()
        if base_V is not None:
            now_V = passed(change_D, anchor_place, input_ids=anchor)[0, -1]
            loss = loss + search.kl_weight * (base_V.exp() * (base_V - now_V)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            change_D *= (search.clamp * norm / change_D.norm().clamp(min=1e-30)).clamp(max=1.0)
    return (seen[0] + change_D.detach())[None]


def measure(shape: tuple[int, int, int], position: Position, num_edits: int, settings: TargetsSettings) -> dict[str, Any]:
    model = make_language_model(shape, settings)
    edits = World(settings.num_subjects).edits("test", num_edits, settings.seed)
    contexts = CONTEXTS if position == "subject" else Contexts(position=position)
    site = f"model.layers.{shape[1] // 2 - 1 if position == 'subject' else shape[1] - 1}"
    few = edits[: settings.num_alone]
    ways = {
        "batch": lambda: find_targets(model, EditBatch(tuple(edits)), site, contexts, settings.search).wanted_nD,
        "one": lambda: torch.cat(
            [find_targets(model, EditBatch((edit,)), site, contexts, settings.search).wanted_nD for edit in few]
        ),
        "plain": lambda: torch.cat([plain_target(model, edit, site, contexts, settings.search) for edit in few]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Tensor] = {}
    for _ in range(settings.repeats):  # in turns, so that a change of the machine's load affects all
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            seconds[name].append((time.perf_counter() - start) / len(found[name]))
    time_of = {name: median(each) for name, each in seconds.items()}
    return {
        "hidden": shape[0],
        "layers": shape[1],
        "written_at": position,
        "num_edits": num_edits,
        "ms_an_edit_batch": 1e3 * time_of["batch"],
        "ms_an_edit_one": 1e3 * time_of["one"],
        "ms_an_edit_plain": 1e3 * time_of["plain"],
        "ratio_one": time_of["one"] / time_of["batch"],
        "ratio_plain": time_of["plain"] / time_of["batch"],
        "difference": max(relative(found[name], found["batch"][: len(few)]) for name in ("one", "plain")),
    }


def relative(found_nD: Tensor, expected_nD: Tensor) -> float:
    return float((found_nD - expected_nD).norm() / expected_nD.norm())


def run(settings: TargetsSettings, command: str) -> Path:
    """Measure, print and write `$ERRATA_HOME/bench-targets/report.json`."""
    about = {"command": command, "seed": settings.seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    positions: tuple[Position, ...] = ("subject", "prompt")
    rows = [measure(s, p, n, settings) for s in settings.shapes for p in positions for n in settings.batches]
    show(f"Targets of a batch of edits, {settings.search.num_steps} steps", rows, NOTE)
    return write_report("bench-targets", rows, **about, settings=asdict(settings))


NOTE = (
    "batch: all edits in one pass a step. one: the same code, an edit at a time. plain: an edit at a time, in whole passes,\n"
    "as the public code has it (both on the first edits). at the subject: six contexts and an anchor an edit, a middle block;\n"
    "at the prompt: bare, the last block. difference: of the targets, the larger of the two, relative to their norm."
)


def parsed(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Targets of a batch together, against one edit at a time.")
    parser.add_argument("--seed", type=int, default=0)
    return int(parser.parse_args(arguments).seed)


def main(seed: int) -> None:
    full = os.environ.get("FULL", "") not in ("", "0")
    settings = TargetsSettings(seed=seed)
    if full:
        settings = replace(settings, shapes=(*settings.shapes, (768, 12, 2304)))
    run(settings, f"{'FULL=1 ' if full else ''}make bench-targets ARGS=--seed={seed}")


if __name__ == "__main__":
    run_job(parsed, main)
