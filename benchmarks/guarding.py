"""A stream of edits with poison, with and without the guard, and the same stream without poison: `make bench-guard`.

There are three kinds of poison in equal parts: an edit that a later one of its batch contradicts; an edit whose subject is a
single token at the start of its prompt, made by ROME as published; and an edit for which the editor takes a step `GIANT` times
as long, for its whole batch. All other edits are made by the demo's RLEdit. Every answer is generated freely.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jobs.train
from benchmarks.report import console, show, write_report
from errata.delta.accumulator import EditedModel
from errata.delta.kinds import weights_alone
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta, chained
from errata.edit import Edit, EditBatch, EditRejected, batches_of
from errata.editors.closed_form.moments import Moments
from errata.editors.closed_form.rome import ROME
from errata.editors.editor import Editor
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.state import EditorState
from errata.evaluate.perplexity import perplexity
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import score
from errata.generate import HFGenerator
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard
from errata.guard.probes import Probes
from errata.hardware import hardware
from errata.home import home
from errata.ledger import Ledger
from errata.lifelong import run as edit_all
from errata.model.generation import greedy_texts
from errata.model.language_model import LanguageModel, checkpoint_fingerprint, load
from errata.model.matrices import ModelSpec, find_matrices
from errata.model.prefix_cache import BatchCache
from errata.testbed.harmful_edits import hard_edits
from errata.testbed.world import World
from errata.text.dialogue import Prompt
from jobs import moments
from jobs.entry import run_job
from jobs.plans import demo

GIANT = 50.0
BATCH_SIZE, POISON_SHARE, MAX_TOKENS = 10, 0.05, 5


@dataclass(frozen=True)
class Misset(Editor):
    """Editor that fails on poison: `inner`, but `rome` makes the hard edits.

    A batch with a giant edit is scaled by `GIANT`.
    """

    modules: tuple[str, ...]
    inner: Editor
    rome: ROME
    rome_state: EditorState

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        return self.inner.start(model, find_matrices(model.module, self.inner.modules))

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        hard = [edit for edit in batch if kind_of(edit) == "hard"]
        usual = [edit for edit in batch if kind_of(edit) != "hard"]
        delta = WeightDelta({})
        if usual:
            made, state = self.inner.edit(model, EditBatch(tuple(usual)), state)
            delta = weights_alone(made, "this benchmark")
            delta = delta.scaled(GIANT) if any(kind_of(edit) == "giant" for edit in usual) else delta
        if hard:
            with applied(model.module, delta):
                more, _ = self.rome.edit(model, EditBatch(tuple(hard)), self.rome_state)
            delta = chained([delta, more])
        return delta, state


def kind_of(edit: Edit) -> str:
    """Return the kind of poison, or `healthy`."""
    return (edit.id or "").split("-")[0] or "healthy"


def poisoned(healthy: Sequence[Edit], world: World, seed: int) -> list[EditBatch]:
    """Insert poison at random places into the batches of healthy edits."""
    rng = random.Random(f"poison {seed}")
    batches = [list(batch) for batch in batches_of(healthy, BATCH_SIZE)]
    count = max(3, round(len(healthy) * POISON_SHARE / (1 - POISON_SHARE)))
    hard = hard_edits(world, count, seed)
    for i, place in enumerate(rng.choices(range(len(batches)), k=count)):
        batch, kind = batches[place], ("contradiction", "hard", "giant")[i % 3]
        one = rng.choice([edit for edit in batch if kind_of(edit) == "healthy"])
        if kind == "contradiction":
            other = rng.choice([edit.target for edit in healthy if edit.target != one.target])
            batch.insert(batch.index(one), Edit(one.prompt, other, one.subject, id=f"contradiction-{i}"))
        elif kind == "hard":
            batch.insert(rng.randrange(len(batch)), hard[i])
        else:
            (extra,) = world.edits("train", 1, seed=1000 + i)
            batch.insert(rng.randrange(len(batch)), replace(extra, id=f"giant-{i}"))
    return [EditBatch(tuple(batch)) for batch in batches]


class GuardBenchmark:
    """Editor, streams and base answers of all runs; each run begins at the base model."""

    def __init__(self, num_edits: int, seed: int) -> None:
        self.plan = replace(demo(), seed=seed)
        world = self.plan.corpus
        assert isinstance(world, World)
        jobs.train.run(self.plan)
        rome = ROME.preset(
            "testbed",
            modules=("layers.1.mlp.down_proj",),
            position="subject",
            context_words=("the", "every", "question"),
        )
        rome = rome.with_moments(Moments.load(moments.run(moments.Measurement(self.plan, rome.modules))))
        base = load(self.plan.model_dir)
        start = rome.start(base, find_matrices(base.module, rome.modules))
        inner = RLEdit.load(self.plan.artifact_dir)
        self.editor = Misset((*inner.modules, *rome.modules), inner, rome, start)
        self.healthy = world.edits("test", num_edits, seed)
        self.poisoned = poisoned(self.healthy, world, seed)
        guarded = set(Probes.beside(self.plan.model_dir).sentences)
        self.sentences = [sentence for sentence in world.plain_sentences(held_out=True) if sentence not in guarded]
        self.prompts = Questions.of(self.healthy).prompts
        self.base_answers, self.base_perplexity = self.answers(base), perplexity(base, self.sentences)

    def answers(self, model: LanguageModel) -> dict[Prompt, str]:
        """Greedy answers to all prompts."""
        return dict(zip(self.prompts, greedy_texts(model, self.prompts, MAX_TOKENS), strict=True))

    def guarded(self, editor: Editor, batches: Sequence[EditBatch], name: str) -> dict[str, Any]:
        """Run the lifelong loop on a ledger that is kept, so that `errata report` can show it.

        If nothing is refused, `overhead` is the guard's seconds divided by all others from an edit to the version that is
        served.
        """
        model, refused = load(self.plan.model_dir), list[Edit]()
        spec, folder = find_matrices(model.module, editor.modules), home() / "bench-guard" / name
        shutil.rmtree(folder, ignore_errors=True)
        fingerprint = checkpoint_fingerprint(self.plan.model_dir)
        ledger = Ledger.create(
            folder, {"model": str(self.plan.model_dir), "fingerprint": fingerprint, "matrices": list(spec.names)}
        )

        def note(batch: EditBatch, _why: EditRejected) -> None:
            refused.extend(batch)

        began = time.perf_counter()
        inspector = Inspector(model, spec, Guard(), Probes.beside(self.plan.model_dir))
        generator = HFGenerator(model, spec, ledger)
        loop = edit_all(editor, inspector, batches, ledger, generator, "bench-guard", note)
        cards = [version.scorecard for version in loop]
        total_s = time.perf_counter() - began
        guard_s, edit_s = (sum(card[name] for card in cards) for name in ("guard_s", "edit_s"))
        times = {"overhead": guard_s / (total_s - guard_s), "overhead_of_editing": guard_s / edit_s}
        return self.scored(model, refused) | (times if not refused else {})

    def unguarded(self, batches: Sequence[EditBatch]) -> dict[str, Any]:
        """Run without a guard. Batches that the editor itself refuses are left out."""
        model, refused = load(self.plan.model_dir), list[Edit]()
        spec = find_matrices(model.module, self.editor.modules)
        edited, state = EditedModel(model.module, spec), self.editor.start(model, spec)
        for batch in batches:
            try:
                delta, state = self.editor.edit(model, batch, state)
            except EditRejected:
                refused.extend(batch)
                continue
            edited.add(delta)
        return self.scored(model, refused)

    def scored(self, model: LanguageModel, refused: Sequence[Edit]) -> dict[str, Any]:
        card = score(Questions.of(self.healthy), self.answers(model), self.base_answers)
        return {
            "efficacy": card.efficacy,
            "generalisation": card.generalisation,
            "locality": card.locality,
            "ppl_ratio": perplexity(model, self.sentences) / self.base_perplexity,
            "refused": len(refused),
            "refused_healthy": sum(kind_of(edit) == "healthy" for edit in refused),
            "overhead": None,
            "overhead_of_editing": None,
        }


def run(num_edits: int, seed: int, command: str) -> Path:
    about = {"command": command, "seed": seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    bench = GuardBenchmark(num_edits, seed)
    runs = {
        "clean": bench.guarded(bench.editor.inner, list(batches_of(bench.healthy, BATCH_SIZE)), "clean"),
        "with_guard": bench.guarded(bench.editor, bench.poisoned, "with_guard"),
        "without_guard": bench.unguarded(bench.poisoned),
    }
    kinds = Counter(kind_of(edit) for batch in bench.poisoned for edit in batch)
    rows = [{"stream": name, **scores} for name, scores in runs.items()]
    show(f"{num_edits} healthy edits", rows, f"the poisoned stream: {dict(kinds)}")
    return write_report("bench-guard", rows, **about, stream=dict(kinds), **runs)


def parsed(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="A poisoned stream of edits with the guard and without.")
    parser.add_argument("--seed", type=int, default=0)
    return int(parser.parse_args(arguments).seed)


def main(seed: int) -> None:
    full = os.environ.get("FULL", "") not in ("", "0")
    run(280 if full else 200, seed, f"{'FULL=1 ' if full else ''}make bench-guard ARGS=--seed={seed}")


if __name__ == "__main__":
    run_job(parsed, main)
