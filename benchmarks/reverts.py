"""Edits reverted in a model that holds 200 of them, and answers traced to their versions: `make bench-revert`.

The testbed's model, the demo's RLEdit, 20 batches of 10. Every trial begins at version 20 and reverts one edit or one batch;
then all prompts are asked. A replayed revert is compared with a ledger in which the edits were never posted.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import jobs.train
from benchmarks.report import console, show, write_report
from errata.edit import Edit, batches_of
from errata.hardware import hardware
from errata.home import home
from errata.model.generation import greedy_texts
from jobs.entry import run_job
from jobs.plans import demo
from serving.worker.live_model import LiveModel, LiveModelOptions

NUM_BATCHES, BATCH_SIZE, MAX_TOKENS = 20, 10, 8
NUM_ONE, NUM_COMPARED, NUM_BLAMED, NUM_QUESTIONS = 10, 3, 60, 200
BATCHES = (0, 4, 9, 14, 19)


class RevertBenchmark:
    """A live model at version 20, with its answers and those of the unedited model."""

    def __init__(self, seed: int) -> None:
        self.plan = replace(demo(), seed=seed)
        jobs.train.run(self.plan)
        edits = self.plan.corpus.edits("test", NUM_BATCHES * BATCH_SIZE, seed)
        self.edits = [replace(edit, id=f"e{i}") for i, edit in enumerate(edits)]
        self.questions = list(dict.fromkeys(probe.prompt for edit in edits for probe in edit.locality))[:NUM_QUESTIONS]
        self.live_model = self.posted("all", ())
        self.live_model.move_to(0)
        self.unedited = self.say(self.questions)
        self.live_model.move_to(NUM_BATCHES)
        self.head = self.say([edit.prompt for edit in self.edits])
        self.head_locality = self.locality()

    def locality(self) -> float:
        """Return the share of unrelated questions answered as by the unedited model."""
        same = [now == then for now, then in zip(self.say(self.questions), self.unedited, strict=True)]
        return sum(same) / len(same)

    def posted(self, name: str, without: Collection[str]) -> LiveModel:
        """Make a new ledger of all edits except `without`."""
        folder = home() / "bench-revert" / name
        shutil.rmtree(folder, ignore_errors=True)
        live_model = LiveModel(LiveModelOptions(str(self.plan.model_dir), str(folder), "RLEdit", str(self.plan.artifact_dir)))
        for batch in batches_of(self.edits, BATCH_SIZE):
            if left := [edit for edit in batch if edit.id not in without]:
                live_model.append(live_model.make(left))
        return live_model

    def say(self, prompts: Sequence[str]) -> list[str]:
        return [text.strip() for text in greedy_texts(self.live_model.model, prompts, MAX_TOKENS, fit_context=True)]

    def trial(self, gone: Sequence[Edit], mode: str, is_compared: bool) -> dict[str, Any]:
        """Measure one revert: milliseconds to make and append the version, and shares of answers by kind of prompt."""
        self.live_model.move_to(NUM_BATCHES)
        ids = [str(edit.id) for edit in gone]
        began = time.perf_counter()
        made = self.live_model.revert(ids, (), mode)
        ready = time.perf_counter()
        version = self.live_model.append(made)
        done = time.perf_counter()
        now = dict(zip([edit.prompt for edit in self.edits], self.say([edit.prompt for edit in self.edits]), strict=True))
        held = [edit for edit, answer in zip(self.edits, self.head, strict=True) if answer == edit.target and edit not in gone]
        return {
            "revert_ms": 1e3 * (ready - began),
            "append_ms": 1e3 * (done - ready),
            "went_back": version.scorecard["went_back"],
            "still_answered": sum(now[edit.prompt] == edit.target for edit in gone) / len(gone),
            "others_kept": sum(now[edit.prompt] == edit.target for edit in held) / len(held),
            "locality": self.locality(),
            "delta_bytes": version.num_bytes,
            "same_bits": self.is_as_never_posted(ids) if is_compared else None,
        }

    def is_as_never_posted(self, ids: Sequence[str]) -> float:
        """Return 1 if weights and editor state have the bits of a ledger without these edits, else 0."""
        never = self.posted("never", ids)
        weights = (
            one.model.module.get_submodule(name).weight
            for name in self.live_model.spec.names
            for one in (self.live_model, never)
        )
        mine, theirs = self.live_model.state.tensors, never.state.tensors
        same_state = mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        return float(same_state and all(torch.equal(*pair) for pair in zip(weights, weights, strict=True)))

    def blamed(self, edits: Sequence[Edit]) -> dict[str, Any]:
        """Measure the search for the version of each edit that the head answers: share found, versions asked, time."""
        self.live_model.move_to(NUM_BATCHES)
        rows = []
        for edit in edits:
            began = time.perf_counter()
            found = self.live_model.blame(edit.prompt, MAX_TOKENS)
            ms = 1e3 * (time.perf_counter() - began)
            own = self.edits.index(edit) // BATCH_SIZE + 1
            is_first = bool(found.edits) and found.edits[0].id == edit.id
            right = {"own_version": float(found.version == own), "own_edit": float(is_first)}
            rows.append({**right, "versions_asked": float(found.num_asked), "ms": ms})
        return averaged(rows)


def averaged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each column."""
    found = {name: [row[name] for row in rows if row[name] is not None] for name in rows[0]}
    return {"trials": len(rows), **{name: sum(some) / len(some) if some else None for name, some in found.items()}}


def run(seed: int, command: str) -> Path:
    about = {"command": command, "seed": seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    bench, rng = RevertBenchmark(seed), random.Random(seed)
    ones = [bench.trial([edit], "replay", i < NUM_COMPARED) for i, edit in enumerate(rng.sample(bench.edits, NUM_ONE))]
    batches = [bench.edits[BATCH_SIZE * i : BATCH_SIZE * (i + 1)] for i in BATCHES]
    rows = [{"taken_out": "an edit", "mode": "replay", **averaged(ones)}]
    for mode in ("subtract", "replay"):
        trials = [bench.trial(batch, mode, i < NUM_COMPARED) for i, batch in enumerate(batches)]
        rows.append({"taken_out": "a batch", "mode": mode, **averaged(trials)})
    show(f"of {NUM_BATCHES} batches of {BATCH_SIZE} edits", rows, f"locality of the head: {bench.head_locality:.3f}")
    answered_by_head = [edit for edit, answer in zip(bench.edits, bench.head, strict=True) if answer == edit.target]
    blamed = bench.blamed(rng.sample(answered_by_head, min(NUM_BLAMED, len(answered_by_head))))
    show("whose answer is this?", [blamed])
    return write_report("bench-revert", rows, **about, blame=blamed, head_locality=bench.head_locality)


def parsed(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Edits taken out of a model that holds 200, by both ways.")
    parser.add_argument("--seed", type=int, default=0)
    return int(parser.parse_args(arguments).seed)


def main(seed: int) -> None:
    torch.set_num_threads(1)  # the matrices are small; two threads would mostly wait for each other
    run(seed, f"make bench-revert ARGS='--seed {seed}'")


if __name__ == "__main__":
    run_job(parsed, main)
