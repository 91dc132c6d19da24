"""Named benchmark suites. A job takes `suite=NAME`, `field=value`, and FULL for the large run.

Every editor has the same number of candidate settings; the best on a validation stream is tested. A new suite is a function
here, found by its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from errata.benchmark.stream import CHECKPOINTS
from errata.datasets.re_edits import ReEdits
from errata.editors import name_of
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.malmen import MALMEN
from errata.editors.hypernet.net import NETWORKS
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Schedule
from errata.evaluate.transformations import check_transformations
from errata.overrides import overridden, with_fields
from errata.testbed.corpus import FOLDS
from errata.testbed.counterfact import CounterFact
from errata.testbed.language_model import Shape
from errata.testbed.world import World
from errata.testbed.world_facts import WorldFacts
from jobs.decomposition import decomposition
from jobs.editor_settings import (
    CAREFUL,
    EditorGrid,
    EditorSetting,
    all_editors,
    grid_of,
    grid_of_fields,
    locate_then_edit_grids,
    rledit,
    row_name,
)
from jobs.plan import Plan
from jobs.plans import tiny as tiny_plan


@dataclass(frozen=True)
class Suite:
    """A model, its edits and the compared editors. The first `budget` settings of each are tried on `num_validation` edits.

    The model is a Llama of `shape` that is trained on the corpus, or the one that `model` names, as in a plan.

    Of the edits after the first batch, the share `re_edits` edits an earlier fact again, and of these the share `reversions`
    posts what the model said before. With `rounds` each fact is edited, edited again so many times, and set to the truth, all
    facts in each round; `num_edits` counts the facts. `transformations` are other ways in which all questions are asked, too
    (`errata.evaluate.transformations`).

    `editors` selects rows by name; empty selects all. `fresh` ignores all cached results except the model. `mlflow` is the
    tracking server that gets the run.
    """

    name: str
    corpus: World | CounterFact | WorldFacts
    shape: Shape
    grids: tuple[EditorGrid, ...] = field(compare=False)  # excludes it from the arguments, see errata/overrides.py
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
    model: str = ""
    re_edits: float = 0.0
    reversions: float = 0.5
    rounds: int = 0
    transformations: tuple[str, ...] = ()

    @property
    def shares(self) -> ReEdits:
        return ReEdits(self.re_edits, self.reversions)

    def check(self) -> None:
        """Raise `ValueError` with what cannot be run."""
        names = [grid.name for grid in self.grids]
        if unknown := [name for name in self.editors if name not in names]:
            raise ValueError(f"suite {self.name} has no {', '.join(unknown)}; it has {', '.join(names)}")
        if few := [grid.name for grid in self.chosen if len(grid.settings) < self.budget]:
            raise ValueError(f"budget={self.budget} is more settings than these have: {', '.join(few)}")
        _ = self.shares  # Refuses what is no share.
        if not isinstance(self.rounds, int) or self.rounds < 0 or (self.rounds and self.re_edits):
            raise ValueError(f"rounds is a number of re-edits of every fact, without re_edits beside it, not {self.rounds!r}")
        check_transformations(self.transformations)
        counts = {name: getattr(self, name) for name in ("num_edits", "num_validation", "budget", "batch_size", "num_workers")}
        counts |= {f"checkpoints {stop!r}": stop for stop in self.checkpoints}
        if wrong := [name for name, count in counts.items() if not isinstance(count, int) or count < 1]:
            raise ValueError(f"must be a whole number of at least 1: {', '.join(wrong)}")
        if not self.seeds or not all(isinstance(seed, int) for seed in self.seeds):
            raise ValueError(f"seeds are whole numbers, at least one: {self.seeds}")
        needed = {"test": self.num_edits, "validation": self.num_validation}
        for setting in (setting for grid in self.chosen for setting in grid.settings):
            for split in FOLDS if setting.cross_fit else ("train",):
                if setting.schedule is not None:
                    needed[split] = max(needed.get(split, 1), setting.schedule.longest)
        for split, count in needed.items():
            self.corpus.edits(split, count)

    @property
    def chosen(self) -> tuple[EditorGrid, ...]:
        """Grids of the selected editors."""
        return tuple(grid for grid in self.grids if not self.editors or grid.name in self.editors)

    @property
    def measured_modules(self) -> tuple[str, ...]:
        """Matrices whose key moments some setting needs."""
        edited = (setting.editor.modules for grid in self.grids for setting in grid.settings if setting.needs_moments)
        return tuple(sorted({module for modules in edited for module in modules}))

    def plan(self, setting: EditorSetting, seed: int) -> Plan:
        """Build the plan that trains a setting, named after the editor's class, so that suites share trained policies."""
        editor, schedule = setting.editor, setting.schedule
        assert isinstance(editor, HypernetworkEditor) and schedule is not None
        plan = replace(self.model_plan, name=name_of(editor), editor=editor, schedule=schedule, seed=seed)
        return replace(plan, metric_part=setting.metric_part, cross_fit=setting.cross_fit)

    @property
    def model_plan(self) -> Plan:
        """Plan of the model and the corpus only; all seeds share one model."""
        plan = Plan(self.name, RLEdit(), corpus=self.corpus, shape=self.shape, num_workers=self.num_workers)
        return replace(plan, mlflow=self.mlflow, model=self.model)

    @property
    def edited_modules(self) -> tuple[str, ...]:
        """Patterns of the matrices that some setting of the chosen editors edits."""
        return tuple(sorted({module for grid in self.chosen for one in grid.settings for module in one.editor.modules}))


def _size(full: bool) -> dict[str, Any]:
    return {"num_edits": 500, "num_validation": 300, "budget": 3, "seeds": (0, 1, 2)} if full else {}


def _schedule(full: bool) -> Schedule:
    """Training schedule; long streams need long episodes: the test stream of 500 edits has 50 batches."""
    return Schedule(train_steps=30, burn_in=42) if full else Schedule(train_steps=12, burn_in=10)


def _world(full: bool) -> dict[str, Any]:
    """Testbed arguments of a suite: the demo's model, or one of twice as many people."""
    corpus = World(300) if full else World(150)
    shape = Shape(train_steps=250, sentences_per_step=512) if full else Shape()
    return {"corpus": corpus, "shape": shape, **_size(full)}


def lifelong(full: bool) -> Suite:
    """Every editor on the testbed's world."""
    return Suite("lifelong", grids=all_editors(4, _schedule(full), locate_then_edit_grids()), **_world(full))


def counterfact(full: bool) -> Suite:
    """Every editor on CounterFact; its folder is $ERRATA_COUNTERFACT, or `corpus.directory=`.

    Its keys span more directions than the testbed's, so that fewer of them may be protected (chosen on 100 validation edits).
    """
    settings: dict[str, Any] = {"weights": (30.0, 10.0, 100.0), "null_spaces": ((3e-2, 1.0), (1e-2, 1.0), (3e-2, 3.0))}
    directory = os.environ.get("ERRATA_COUNTERFACT", "")
    if full:
        shape = Shape(288, 6, 864, 6, train_steps=1000, sentences_per_step=256, bf16=True, peak_lr=1.5e-3)
        closed_form = locate_then_edit_grids(**settings, modules=("layers.5.mlp.down_proj",))
        grids = all_editors(6, _schedule(True), closed_form)
        sizes = {"num_edits": 1000, "seeds": (0,)}
        return Suite("counterfact", CounterFact(directory), shape, grids, **_size(True) | sizes)
    corpus = CounterFact(directory, num_train=500, num_test=150)
    shape = Shape(192, 4, 576, 4, train_steps=240, sentences_per_step=256, bf16=True)
    closed_form = locate_then_edit_grids(**settings, modules=("layers.3.mlp.down_proj",))
    return Suite("counterfact", corpus, shape, all_editors(4, _schedule(False), closed_form), num_edits=100)


def ablation(full: bool) -> Suite:
    """Show what a score comes from: the decomposition, and RLEdit with one part changed at a time; settings are fixed.

    Rows that are RLEdit with its metric, without it, with one pass, and cross-fitted are rows of the decomposition.
    """
    modules = ("layers.3.mlp.down_proj",)
    schedule = _schedule(full)
    editor = rledit(modules)
    whole = EditorSetting(editor, schedule)
    single = {
        "schedule.batches": 1,
        "schedule.burn_in": 0,
        "schedule.train_steps": schedule.batches * schedule.train_steps,
    }
    untrained, half = {"schedule.train_steps": 0}, {"metric_part": "train"}
    changes: dict[str, dict[str, Any]] = {
        "without sequence-level training": single,
        "without burn-in": {"schedule.burn_in": 0},
        "without backtracking": {"editor.reward.backtrack_depth": 0},
        "without regulariser": {"editor.reward.update_penalty": 0.0},
        "metric of the train half": half,
        "metric of the train half, untrained": half | untrained,
        "without memory": {"editor.memory": 0.0},
        "residual network": {"editor.network": "residual"},
        "published constants": {"editor": RLEdit.preset("llama3_8b", modules=modules)},
        "published constants with the step rescaled": {
            "editor": RLEdit.preset("llama3_8b", modules=modules, first_step=0.4, first_ridge=1.0)
        },
        "untrained": untrained,
    }
    malmen = MALMEN(modules, metric_strength=editor.metric_strength, reward=CAREFUL)
    grids = (
        *decomposition(editor, schedule),
        *(EditorGrid(name, (with_fields(whole, fields),)) for name, fields in changes.items()),
        EditorGrid("MALMEN with the metric", (with_fields(EditorSetting(malmen, schedule), single),)),
    )
    return Suite("ablation", grids=grids, **_world(full) | {"budget": 1, "seeds": (0,)})


def reedits(full: bool) -> Suite:
    """Corrections of corrections: each fact is edited, edited again three times, and set to the truth again.

    Beside every editor, the three networks are rows that are trained on streams with re-edits.
    """
    suite, schedule = lifelong(full), replace(_schedule(full), re_edits=0.4)
    learned = [replace(rledit(("layers.3.mlp.down_proj",)), network=network) for network in NETWORKS]
    again = [EditorGrid(f"{row_name(one)} trained with re-edits", (EditorSetting(one, schedule),)) for one in learned]
    grids, num_edits = (*suite.grids, *again), 100 if full else 50
    return replace(suite, name="reedits", grids=grids, budget=1, seeds=(0,), rounds=3, num_edits=num_edits)


def tiny(full: bool) -> Suite:
    """Build the smallest complete suite, for tests: a hypernetwork, fine-tuning, an editor with key moments, and a memory."""
    plan = tiny_plan()
    first = EditorSetting(plan.editor, replace(plan.schedule, train_steps=2))
    modules = plan.editor.modules
    grids = (
        EditorGrid("RLEdit", (first, with_fields(first, {"editor.num_passes": 2}))),
        grid_of_fields("LocFT", *({"modules": modules, "num_epochs": epochs} for epochs in (5, 10))),
        grid_of("AlphaEdit", *(AlphaEdit.preset("testbed", modules=modules, ridge=ridge) for ridge in (1.0, 3.0))),
        grid_of_fields("state", *({"modules": modules, "max_false": share} for share in (0.01, 0.1))),
    )
    return Suite("tiny", plan.corpus, plan.shape, grids, 8, 8, budget=2, batch_size=4, num_workers=1)


_ALL = (lifelong, counterfact, ablation, reedits, tiny)
SUITES: dict[str, Callable[[bool], Suite]] = {suite.__name__: suite for suite in _ALL}


def from_arguments(arguments: Sequence[str]) -> Suite:
    """Read a suite from `suite=NAME field=value ... [FULL]`; the environment variable FULL=1 means the same as FULL.

    Raises `ValueError` that names an unknown suite, field or editor and lists the known ones.
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
