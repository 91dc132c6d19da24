"""Edits taken out of a model that holds 200 of them, by each way back: `make bench-wayback`.

A small Llama that has learned the testbed's invented world, and editors whose normal equations are additive: MEMIT without and
with past keys, AlphaEdit, and RLEdit, whose targets the network gives. 20 batches of 10 edits are made, and 20 edits, drawn by
the seed, are taken out. The result is compared with a model that never had them, made by the same editor from the same edits.

For each mode: the distance of the edited matrices to that model's, relative to what the edits had changed; the share of all
prompts and of unrelated questions that get that model's answer; the share of the edits that stay and are answered; and the
seconds to make the version, the guard's and the questions about the effect included.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import jobs.train
from benchmarks.report import console, show, write_report
from errata.delta.accumulator import EditedModel
from errata.edit import Edit, EditBatch, batches_of
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.moments import Moments
from errata.editors.editor import Editor
from errata.editors.hypernet.reward import Reward
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Schedule
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.hardware import hardware
from errata.history.revert import Mode, revert
from errata.home import home
from errata.ledger import Ledger, Version
from errata.model.generation import greedy_texts
from errata.model.key_moments import key_moment
from errata.model.language_model import load
from errata.model.matrices import ModelSpec, find_matrices
from errata.testbed.language_model import Shape
from errata.testbed.world import World
from jobs.entry import run_job
from jobs.plan import Plan
from jobs.training_data import texts

NUM_EDITS, BATCH_SIZE, NUM_GONE, MAX_TOKENS, NUM_QUESTIONS = 200, 10, 20, 8, 200
MODES: tuple[Mode, ...] = ("downdate", "replay")
OPEN = Guard(change=Limit(1e9, 1e9), growth=Limit(1e9, 1e9), forgotten=Limit(1.0, 1.0))  # Each result is to be measured.


def plan_of(seed: int) -> Plan:
    """Build the plan of the model and of RLEdit's policy: smaller than the demo's, and minutes on one core."""
    editor = RLEdit(
        modules=("layers.3.mlp.down_proj",),
        rank=64,
        metric_strength=1e5,
        first_step=0.4,
        first_ridge=1.0,
        network="identity",
        reward=Reward(backtrack_depth=1, backtrack_uniform=True, locality_weight=0.7),
    )
    shape = Shape(hidden=128, layers=4, intermediate=384, train_steps=200, sentences_per_step=128, peak_lr=4e-3)
    schedule = Schedule(train_steps=12, batches=4, burn_in=2)
    return Plan("wayback", editor, schedule, seed=seed, corpus=World(110), shape=shape, num_workers=1)


class EditedLedger:
    """A ledger of one editor, with a model in memory at its head. It is the context of a revert."""

    def __init__(self, editor: Editor, model_dir: Path, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.editor, self.model = editor, load(model_dir)
        self.spec: ModelSpec = find_matrices(self.model.module, editor.modules)
        self.inspector = Inspector(self.model, self.spec, OPEN, Probes((), ()))
        self.edited = EditedModel(self.model.module, self.spec)
        base = {"model": str(model_dir), "fingerprint": "testbed", "matrices": list(self.spec.names)}
        self.ledger, self.state = Ledger.create(folder, base), editor.start(self.model, self.spec)

    @property
    def version(self) -> int:
        return self.ledger.head

    @property
    def origin(self) -> tuple[str, str]:
        return type(self.editor).__name__, ""

    def post(self, edits: Sequence[Edit], without: Collection[str] = ()) -> None:
        """Make edits in batches, without some of them."""
        for batch in batches_of(edits, BATCH_SIZE):
            left = tuple(edit for edit in batch if edit.id not in without)
            delta, self.state = self.editor.edit(self.model, EditBatch(left), self.state)
            made = self.ledger.append(self.version, delta, self.state, left, {}, self.origin)
            self.edited.add(self.ledger.delta(made.number))

    def revert(self, ids: Sequence[str], mode: Mode) -> tuple[Version, float]:
        """Take edits out. Returns the version, and the seconds to make it."""
        head, began = self.version, time.perf_counter()
        context: Any = self  # Its `version` is that of the ledger's head, which the protocol lets be set.
        made = revert(context, ids, (), mode)
        seconds = time.perf_counter() - began
        card = made.scorecard
        version = self.ledger.append(made.parent, made.delta, made.state, made.edits, card, self.origin, expected_head=head)
        self.edited.set(self.ledger.segments(version.number))
        return version, seconds

    def back_to(self, version: int) -> None:
        self.ledger.move_head(version)
        self.edited.set(self.ledger.segments(version))

    def say(self, prompts: Sequence[str]) -> list[str]:
        return [text.strip() for text in greedy_texts(self.model, prompts, MAX_TOKENS, fit_context=True)]

    def weights(self) -> torch.Tensor:
        return torch.cat([self.model.module.get_submodule(name).weight.double().flatten() for name in self.spec.names])


@dataclass(frozen=True)
class Seen:
    """A model as it is compared: its matrices, and its answers to all prompts and to unrelated questions."""

    weights: torch.Tensor
    answers: list[str]
    unrelated: list[str]

    @classmethod
    def of(cls, ledger: EditedLedger, edits: Sequence[Edit], questions: Sequence[str]) -> Seen:
        return cls(ledger.weights(), ledger.say([edit.prompt for edit in edits]), ledger.say(questions))


def row_of(found: Seen, never: Seen, base: torch.Tensor, edits: Sequence[Edit], gone: Collection[str]) -> dict[str, Any]:
    """Compare a model with the one that never had the edits."""
    asked = list(zip(edits, found.answers, strict=True))
    kept = [answer == edit.target for edit, answer in asked if edit.id not in gone]
    out = [answer == edit.target for edit, answer in asked if edit.id in gone]
    return {
        "relative_distance": float((found.weights - never.weights).norm() / (never.weights - base).norm()),
        "answers_equal": equal(found.answers, never.answers),
        "unrelated_equal": equal(found.unrelated, never.unrelated),
        "others_answered": sum(kept) / len(kept),
        "gone_answered": sum(out) / len(out),
    }


def equal(one: Sequence[str], other: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def editors_of(plan: Plan) -> dict[str, Editor]:
    """Make the editors, trained or with key moments, by the name of their row."""
    jobs.train.run(plan)
    policy = RLEdit.load(plan.artifact_dir)
    memit, alphaedit = MEMIT.preset("testbed"), AlphaEdit.preset("testbed")
    model = load(plan.model_dir)
    names = find_matrices(model.module, memit.modules).names
    moments = Moments(key_moment(model.module, texts(plan, model), names))
    return {
        "MEMIT": memit.with_moments(moments),
        "MEMIT with past keys": replace(memit, memory=1.0).with_moments(moments),
        "AlphaEdit": alphaedit.with_moments(moments),
        "RLEdit, 1 pass": policy,
        "RLEdit, 3 passes": replace(policy, num_passes=3),
    }


def rows_of(name: str, editor: Editor, plan: Plan) -> list[dict[str, Any]]:
    """Measure every way back of one editor; `none` is the model with the edits still in it."""
    edits = [replace(one, id=f"e{i}") for i, one in enumerate(plan.corpus.edits("test", NUM_EDITS, plan.seed))]
    questions = list(dict.fromkeys(probe.prompt for edit in edits for probe in edit.locality))[:NUM_QUESTIONS]
    gone = random.Random(plan.seed).sample([str(edit.id) for edit in edits], NUM_GONE)
    folder = home() / "bench-wayback"
    here, without = (EditedLedger(editor, plan.model_dir, folder / which) for which in ("all", "never"))
    base = here.weights()
    here.post(edits)
    without.post(edits, gone)
    never, head = Seen.of(without, edits, questions), here.version
    rows = [
        {"editor": name, "mode": "none", **row_of(Seen.of(here, edits, questions), never, base, edits, gone), "seconds": None}
    ]
    for mode in MODES:
        here.back_to(head)
        _, seconds = here.revert(gone, mode)
        rows.append({"editor": name, "mode": mode, **row_of(Seen.of(here, edits, questions), never, base, edits, gone)})
        rows[-1]["seconds"] = seconds
    return rows


def run(seed: int, command: str) -> Path:
    """Measure all editors and write the report."""
    about = {"command": command, "seed": seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    plan = plan_of(seed)
    rows = [row for name, editor in editors_of(plan).items() for row in rows_of(name, editor, plan)]
    show(f"{NUM_GONE} of {NUM_EDITS} edits taken out", rows)
    return write_report("bench-wayback", rows, **about, edits=NUM_EDITS, taken_out=NUM_GONE)


def parsed(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="20 of 200 edits taken out, against a model that never had them.")
    parser.add_argument("--seed", type=int, default=0)
    return int(parser.parse_args(arguments).seed)


def main(seed: int) -> None:
    torch.set_num_threads(1)  # the matrices are small; two threads would mostly wait for each other
    run(seed, f"make bench-wayback ARGS='--seed {seed}'")


if __name__ == "__main__":
    run_job(parsed, main)
