"""Named suites: which editors are compared on what. A job takes `suite=NAME`, `field=value`, and FULL for the large run.

Every contestant has the same number of candidate settings; the best on a validation stream is the one that is tested.
A new suite is a function here; it is found by its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from errata.benchmark.stream import CHECKPOINTS
from errata.editors import name_of
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Schedule
from errata.overrides import overridden
from errata.testbed.corpus import FOLDS
from errata.testbed.counterfact import CounterFact
from errata.testbed.language_model import Shape
from errata.testbed.world import World
from jobs.editor_settings import EditorGrid, EditorSetting, all_editors, located, of_settings, rledit, solved, varied
from jobs.plan import Plan
from jobs.plans import tiny as tiny_plan


@dataclass(frozen=True)
class Suite:
    """A model, its edits, and who competes. `budget` candidates of each contestant are tried on `num_validation` edits.

    `editors` chooses contestants by name; empty, all take part. `fresh` does everything anew but the model. `mlflow` is the
    tracking server that is told.
    """

    name: str
    corpus: World | CounterFact
    shape: Shape
    contestants: tuple[EditorGrid, ...] = field(compare=False)  # so that no argument is taken for them
    num_edits: int = 100
    num_validation: int = 100
    budget: int = 1
    batch_size: int = 10
    checkpoints: tuple[int, ...] = CHECKPOINTS
    seeds: tuple[int, ...] = (0,)
    editors: tuple[str, ...] = ()
    num_workers: int = 2
    fresh: bool = False
    mlflow: str = ""

    def check(self) -> None:
        """Raise `ValueError` with what cannot be run."""
        names = [contestant.name for contestant in self.contestants]
        if unknown := [name for name in self.editors if name not in names]:
            raise ValueError(f"suite {self.name} has no {', '.join(unknown)}; it has {', '.join(names)}")
        if few := [c.name for c in self.chosen if len(c.candidates) < self.budget]:
            raise ValueError(f"a budget of {self.budget} candidates is more than these have: {', '.join(few)}")
        counts = {name: getattr(self, name) for name in ("num_edits", "num_validation", "budget", "batch_size", "num_workers")}
        counts |= {f"checkpoints {stop!r}": stop for stop in self.checkpoints}
        if wrong := [name for name, count in counts.items() if not isinstance(count, int) or count < 1]:
            raise ValueError(f"must be a whole number of at least 1: {', '.join(wrong)}")
        if not self.seeds or not all(isinstance(seed, int) for seed in self.seeds):
            raise ValueError(f"seeds are whole numbers, at least one: {self.seeds}")
        needed = {"test": self.num_edits, "validation": self.num_validation}
        for candidate in (c for one in self.chosen for c in one.candidates if c.schedule is not None):
            assert candidate.schedule is not None
            for split in FOLDS if candidate.cross_fit else ("train",):
                needed[split] = max(needed.get(split, 1), candidate.schedule.longest)
        for split, count in needed.items():
            self.corpus.edits(split, count)

    @property
    def chosen(self) -> tuple[EditorGrid, ...]:
        return tuple(c for c in self.contestants if not self.editors or c.name in self.editors)

    @property
    def protected(self) -> tuple[str, ...]:
        """The matrices whose moments somebody is given."""
        asked = (c.editor.modules for one in self.contestants for c in one.candidates if c.protects)
        return tuple(sorted({module for modules in asked for module in modules}))

    def plan(self, candidate: EditorSetting, seed: int) -> Plan:
        """The plan that trains a candidate. Its name is the editor's class: what suites have in common is trained once."""
        editor, schedule = candidate.editor, candidate.schedule
        assert isinstance(editor, HypernetworkEditor) and schedule is not None
        plan = replace(self.model_plan, name=name_of(editor), editor=editor, schedule=schedule, seed=seed)
        return replace(plan, metric_part=candidate.metric_part, cross_fit=candidate.cross_fit)

    @property
    def model_plan(self) -> Plan:
        """A plan with the model and the corpus alone; there is one model, whatever the seed."""
        plan = Plan(self.name, RLEdit(), corpus=self.corpus, shape=self.shape, num_workers=self.num_workers)
        return replace(plan, mlflow=self.mlflow)


def _size(full: bool) -> dict[str, Any]:
    return {"num_edits": 500, "num_validation": 300, "budget": 3, "seeds": (0, 1, 2)} if full else {}


def _schedule(full: bool) -> Schedule:
    """Long episodes for long streams: the test stream of 500 edits has 50 batches."""
    return Schedule(train_steps=30, burn_in=42) if full else Schedule(train_steps=12, burn_in=10)


def _world(full: bool) -> dict[str, Any]:
    """The testbed and how much of it: the demo's model, or one of twice as many people."""
    corpus = World(300) if full else World(150)
    shape = Shape(train_steps=250, sentences_per_step=512) if full else Shape()
    return {"corpus": corpus, "shape": shape, **_size(full)}


def lifelong(full: bool) -> Suite:
    """Every editor on the testbed's world."""
    return Suite("lifelong", contestants=all_editors(4, _schedule(full), located()), **_world(full))


def counterfact(full: bool) -> Suite:
    """Every editor on CounterFact; its folder is $ERRATA_COUNTERFACT, or `corpus.directory=`.

    Its keys are spread over more directions than the testbed's, so that less of them may be protected (100 validation edits).
    """
    settings: dict[str, Any] = {"weights": (30.0, 10.0, 100.0), "null_spaces": ((3e-2, 1.0), (1e-2, 1.0), (3e-2, 3.0))}
    directory = os.environ.get("ERRATA_COUNTERFACT", "")
    if full:
        shape = Shape(288, 6, 864, 6, train_steps=1000, sentences_per_step=256, bf16=True, peak_lr=1.5e-3)
        contestants = all_editors(6, _schedule(True), located(**settings, modules=("layers.5.mlp.down_proj",)))
        sizes = {"num_edits": 1000, "seeds": (0,)}
        return Suite("counterfact", CounterFact(directory), shape, contestants, **_size(True) | sizes)
    corpus = CounterFact(directory, num_train=500, num_test=150)
    shape = Shape(192, 4, 576, 4, train_steps=240, sentences_per_step=256, bf16=True)
    return Suite(
        "counterfact",
        corpus,
        shape,
        all_editors(4, _schedule(False), located(**settings, modules=("layers.3.mlp.down_proj",))),
        num_edits=100,
    )


def ablation(full: bool) -> Suite:
    """RLEdit with a part taken away at a time, at settings that are not chosen anew."""
    modules = ("layers.3.mlp.down_proj",)
    schedule = _schedule(full)
    whole = EditorSetting(rledit(modules), schedule)
    single = {"batches": 1, "burn_in": 0, "train_steps": schedule.batches * schedule.train_steps}
    crossed = {"cross_fit": True, "burn_in": schedule.burn_in // 2}
    variants = {
        "full": whole,
        "without sequence-level training": varied(whole, single),
        "without burn-in": varied(whole, {"burn_in": 0}),
        "without backtracking": varied(whole, {"backtrack_depth": 0}),
        "without regulariser": varied(whole, {"update_penalty": 0.0}),
        "without metric": varied(whole, {"metric_strength": 0.0}),
        "metric of the train half": varied(whole, {"metric_part": "train"}),
        "metric of the train half, untrained": varied(whole, {"metric_part": "train", "train_steps": 0}),
        "metric of the train half, cross-fitted": varied(whole, {"metric_part": "train", **crossed}),
        "without memory": varied(whole, {"memory": 0.0}),
        "one pass": varied(whole, {"num_passes": 1}),
        "published constants": EditorSetting(RLEdit.preset("llama3_8b", modules=modules), schedule),
        "untrained": varied(whole, {"train_steps": 0}),
    }
    contestants = tuple(EditorGrid(name, (candidate,)) for name, candidate in variants.items())
    return Suite("ablation", contestants=contestants, **_world(full) | {"budget": 1, "seeds": (0,)})


def tiny(full: bool) -> Suite:
    """The smallest that does everything, for tests: two candidates of an editor that learns and of one that does not."""
    plan = tiny_plan()
    first = EditorSetting(plan.editor, replace(plan.schedule, train_steps=1))
    place = {"modules": plan.editor.modules}
    contestants = (
        EditorGrid("RLEdit", (first, varied(first, {"num_passes": 2}))),
        solved("LocFT", *(place | {"num_epochs": epochs} for epochs in (5, 10))),
        of_settings("AlphaEdit", *(AlphaEdit.preset("testbed", **place, ridge=ridge) for ridge in (1.0, 3.0))),
    )
    return Suite("tiny", plan.corpus, plan.shape, contestants, 8, 8, budget=2, batch_size=4, num_workers=1)


SUITES: dict[str, Callable[[bool], Suite]] = {suite.__name__: suite for suite in (lifelong, counterfact, ablation, tiny)}


def from_arguments(arguments: Sequence[str]) -> Suite:
    """A suite from `suite=NAME field=value ... [FULL]`; FULL=1 in the environment counts, too.

    Raises `ValueError` naming an unknown suite, field or contestant and what there is.
    """
    full = "FULL" in arguments or os.environ.get("FULL", "0") not in ("", "0")
    pairs = [argument.partition("=") for argument in arguments if argument != "FULL"]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ValueError(f"arguments are written field=value, or FULL; not so: {', '.join(wrong)}")
    values = {name: "True" if (name, value) == ("fresh", "1") else value for name, _, value in pairs}
    chosen = values.pop("suite", "lifelong")
    if chosen not in SUITES:
        raise ValueError(f"no suite is named {chosen!r}; there are {', '.join(SUITES)}")
    suite = SUITES[chosen](full)
    for name, value in values.items():
        suite = overridden(suite, name, value)
    suite.check()
    return suite
