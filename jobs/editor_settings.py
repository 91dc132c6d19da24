"""Candidate settings of the benchmarked editors, the most likely first. A new editor is one line in `all_editors`.

An `EditorGrid` is one row of the comparison; the best of its settings on a validation stream is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from errata.editors import EDITORS, Editor, name_of
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.locate_then_edit import LocateThenEdit
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.nse import NSE
from errata.editors.closed_form.rome import ROME, RROME
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.malmen import MALMEN
from errata.editors.hypernet.mend import MEND
from errata.editors.hypernet.reward import Reward
from errata.editors.hypernet.training import Schedule
from errata.editors.wrappers.blue import BLUE
from errata.editors.wrappers.nas import NAS
from errata.editors.wrappers.oedit import OEdit, OEditPlus
from errata.editors.wrappers.prune import PRUNE
from errata.editors.wrappers.rect import RECT
from errata.editors.wrappers.sphere import SPHERE
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.overrides import with_fields
from errata.testbed.corpus import FOLDS
from jobs.plans import demo


@dataclass(frozen=True)
class EditorSetting:
    """Hyper-parameters of an editor and, for a hypernetwork, of its training; `metric_part` and `cross_fit` as in a plan.

    With `white_metric` the editor's moments know no direction, only how large keys are: the row without a metric of an editor
    that has no setting for it.
    """

    editor: Editor
    schedule: Schedule | None = None
    metric_part: str = ""
    cross_fit: bool = False
    white_metric: bool = False

    @property
    def needs_moments(self) -> bool:
        """True if the editor is given the second moments of the model's keys."""
        return isinstance(self.editor, LocateThenEdit | EditorWrapper)

    def part(self, split: str) -> str:
        """Part of the corpus that the key preconditioner or the moments are measured on.

        A setting that must not know the test facts must not know those of the validation stream either.
        """
        return FOLDS[0] if split == "validation" and self.metric_part == "train" else self.metric_part

    def __post_init__(self) -> None:
        if self.editor.is_trained != (self.schedule is not None):
            raise ValueError(f"{name_of(self.editor)}: a trained editor needs a training schedule, other editors take none")


@dataclass(frozen=True)
class EditorGrid:
    """An editor by the name of its row, with candidate settings, the most likely first.

    `parts` are columns of a decomposition: what the row consists of.
    """

    name: str
    settings: tuple[EditorSetting, ...]
    parts: Mapping[str, str | int] = field(default_factory=dict)


def row_name(editor: HypernetworkEditor) -> str:
    """Return the name of a row: the method as published, or the metric that it is solved in and what of its network is left."""
    name = name_of(editor)
    solve = "metric solve" if editor.metric_strength else "ridge solve"
    if editor.network == "identity":
        return solve
    if editor.network == "residual":
        return f"{solve} + residual {name} network"
    return f"{solve} + {name} network" if editor.metric_strength else name


def hypernetwork_grid(editor: HypernetworkEditor, schedule: Schedule, *others: Mapping[str, Any]) -> EditorGrid:
    """Grid named after what the editor is. `others` change fields of the first setting, by path (`editor.num_passes`)."""
    first = EditorSetting(editor, schedule)
    return EditorGrid(row_name(editor), (first, *(with_fields(first, fields) for fields in others)))


def grid_of_fields(name: str, *fields: Mapping[str, Any]) -> EditorGrid:
    """Grid of an editor without training, by its name in EDITORS and its fields."""
    make: Any = EDITORS[name]
    return EditorGrid(name, tuple(EditorSetting(make(**each)) for each in fields))


def grid_of(name: str, *editors: Editor, metric_part: str = "") -> EditorGrid:
    """Grid of editors without training."""
    return EditorGrid(name, tuple(EditorSetting(editor, metric_part=metric_part) for editor in editors))


def untrained_grids(layers: int) -> tuple[EditorGrid, ...]:
    """Grids over matrices for UltraEdit, FT-L, LocFT and LoRA, whose scores depend most on the edited layer."""
    last, middle = f"layers.{layers - 1}.mlp.down_proj", f"layers.{layers // 2}.mlp.down_proj"
    early = f"layers.{layers // 2 - 1}.mlp.up_proj"
    descent = {"num_epochs": 60, "loss_floor": 5e-2}
    return (
        grid_of_fields(
            "UltraEdit",
            {"modules": (middle,), "step": 3e-4},
            {"modules": (last,), "step": 3e-4},
            {"modules": (early,), "step": 1e-3},
        ),
        grid_of_fields(
            "FT-L",
            *({"modules": (m,), "epsilon": e, "learning_rate": e} for m, e in ((early, 1e-2), (early, 5e-3), (last, 1e-2))),
        ),
        grid_of_fields(
            "LocFT", {"modules": (early,), **descent}, {"modules": (middle,), **descent}, {"modules": (last,), **descent}
        ),
        grid_of_fields("LoRA", *({"modules": (place,), **descent} for place in (early, middle, last))),
    )


def memory_grids(layers: int) -> tuple[EditorGrid, ...]:
    """Grids of the editors of a memory, whose scores depend most on what they read and on how often they may err."""
    last, middle = f"layers.{layers - 1}.mlp.down_proj", f"layers.{layers // 2}.mlp.down_proj"
    return (
        grid_of_fields(
            "state",
            {"modules": (last,)},
            {"modules": (last,), "max_false": 0.1},
            {"modules": (middle,)},
        ),
        grid_of_fields(
            "SCR",
            {"modules": (last,)},
            {"modules": (last,), "max_false": 0.1},
            {"modules": (middle,)},
        ),
        grid_of_fields("answer", *({"modules": (last,), "threshold": least} for least in (0.55, 0.45, 0.65))),
        grid_of_fields("RTD", {"modules": (last,)}, {"modules": (last,), "max_false": 0.1}, {"modules": (last,), "share": 0.8}),
        grid_of_fields(
            "SWEA",
            {"modules": (last,), "starters": ("the", "every")},
            {"modules": (last,), "starters": ("the", "every"), "learning_rate": 0.1, "max_norm": 3.0},
            {"modules": (last,), "starters": ("the", "every"), "suppression": 0.0},
        ),
    )


MOMENT_WEIGHTS = (1000.0, 300.0, 3000.0)  # of the keys' second moment in MEMIT, the most likely first
NULL_SPACES = ((1e-4, 1.0), (1e-4, 3.0), (3e-4, 3.0))  # threshold and ridge of AlphaEdit


def locate_then_edit_grids(
    weights: tuple[float, float, float] = MOMENT_WEIGHTS,
    null_spaces: tuple[tuple[float, float], ...] = NULL_SPACES,
    **modules: Any,
) -> tuple[EditorGrid, ...]:
    """Grids of the closed-form editors at the testbed's presets, or at other matrices (`modules=`)."""
    weight, lighter, heavier = weights

    def memit(weight: float) -> MEMIT:
        return MEMIT.preset("testbed", moment_weight=weight, **modules)

    def alphaedit(threshold: float, ridge: float) -> AlphaEdit:
        return AlphaEdit.preset("testbed", threshold=threshold, ridge=ridge, **modules)

    def nse(weight: float, share: float) -> NSE:
        return NSE.preset("testbed", moment_weight=weight, neurons=share, **modules)

    def blue(distance: int) -> BLUE:
        """Wrap AlphaEdit at two blocks: the last of the editors' own, and the one `distance` blocks before it."""
        last = modules.get("modules", AlphaEdit.preset("testbed").modules)[-1]
        block = int(last.split(".")[1])
        both = (last.replace(str(block), str(block - distance)), last)
        threshold, ridge = null_spaces[0]
        return BLUE(AlphaEdit.preset("testbed", threshold=threshold, ridge=ridge, modules=both))

    one = {**modules, "modules": modules["modules"][-1:]} if "modules" in modules else modules
    words: dict[str, Any] = {"context_words": ("the", "every"), "context_lengths": (5,)}
    rome, alphaedits = ROME.preset("testbed", **one), tuple(alphaedit(*chosen) for chosen in null_spaces)
    return (
        grid_of("ROME", rome, replace(rome, floor=1e-5), replace(rome, **words)),
        grid_of("R-ROME", *(RROME.preset("testbed", **one, **fields) for fields in ({}, {"floor": 1e-5}, words))),
        grid_of("MEMIT", *(memit(w) for w in weights)),
        grid_of("RECT", RECT(memit(weight)), RECT(memit(lighter)), RECT(memit(weight), kept=0.6)),
        grid_of(
            "PRUNE", PRUNE(memit(weight), base=1.2), PRUNE(memit(lighter), base=1.2), PRUNE(memit(weight), restraint="linear")
        ),
        grid_of("AlphaEdit", *alphaedits),
        grid_of("AlphaEdit, train half", *alphaedits, metric_part="train"),
        grid_of("BLUE", blue(1), blue(2), blue(3)),
        grid_of("NAS", *map(NAS, alphaedits)),
        grid_of("SPHERE", *map(SPHERE, alphaedits)),
        grid_of("NSE", nse(weight, 1.0), nse(heavier, 1.0), nse(weight, 0.8)),
        grid_of("O-Edit", *(OEdit(rome, past_weight=w, knowledge_weight=w) for w in (50.0, 200.0, 10.0))),
        grid_of(
            "O-Edit+",
            OEditPlus(rome, knowledge_rate=0.0),
            OEditPlus(rome, knowledge_rate=0.0, past_rank=64),
            OEditPlus(rome, knowledge_rate=0.25, past_rank=64, knowledge_rank=32),
        ),
    )


def rledit(modules: tuple[str, ...]) -> HypernetworkEditor:
    """Build the demo's RLEdit at other matrices; its larger locality weight suits streams five to ten times as long."""
    editor = demo().editor
    assert isinstance(editor, HypernetworkEditor)
    return replace(editor, modules=modules, reward=replace(editor.reward, locality_weight=7.0))


def cross_fitted(editor: HypernetworkEditor, schedule: Schedule) -> EditorGrid:
    """RLEdit with a key preconditioner that excludes the test facts, trained on edits that its preconditioner excludes."""
    half_as_long = replace(schedule, burn_in=schedule.burn_in // 2)
    first = EditorSetting(editor, half_as_long, metric_part="train", cross_fit=True)
    others = (SWEPT, {"editor.metric_strength": 1e3, "editor.reward.locality_weight": 15.0})
    return EditorGrid(f"{row_name(editor)}, train half", (first, *(with_fields(first, fields) for fields in others)))


# The best of 24 trials of `jobs/tune.py plan=demo trials=24 validation=140`, rounded; docs/benchmarks.md has the sweep.
SWEPT: dict[str, Any] = {
    "editor.reward.discount": 0.85,
    "editor.reward.backtrack_decay": 0.88,
    "editor.reward.backtrack_depth": 3,
    "editor.reward.update_penalty": 2.3e-4,
    "editor.reward.locality_weight": 2.3,
    "editor.learning_rate": 3.2e-3,
    "editor.first_step": 0.34,
    "editor.metric_strength": 6e3,
    "editor.memory": 0.78,
}


CAREFUL = Reward(locality_weight=10.0, update_penalty=0.0)  # of MALMEN, which is trained on single batches


def all_editors(layers: int, schedule: Schedule, closed: tuple[EditorGrid, ...]) -> tuple[EditorGrid, ...]:
    """Every editor with three settings. MALMEN and MEND train on as many batches as RLEdit's episodes have, one at a time."""
    last, middle = (f"layers.{layers - 1}.mlp.down_proj",), (f"layers.{layers // 2}.mlp.down_proj",)
    early = (f"layers.{layers // 2 - 1}.mlp.up_proj",)
    single = replace(schedule, train_steps=schedule.batches * schedule.train_steps, batches=1, burn_in=0)
    others: tuple[dict[str, Any], ...] = (
        {"editor.reward.locality_weight": 5.0},
        {
            "editor.num_passes": 2,
            "editor.first_step": 0.5,
            "editor.first_ridge": 0.5,
            "editor.metric_strength": 1e4,
            "editor.reward.locality_weight": 10.0,
        },
    )
    identity = replace(rledit(last), network="identity")
    return (
        hypernetwork_grid(rledit(last), schedule, *others),
        cross_fitted(rledit(last), schedule),
        hypernetwork_grid(identity, schedule, *others),
        cross_fitted(identity, schedule),
        hypernetwork_grid(MALMEN(last, reward=CAREFUL), single, {"editor.modules": middle}, {"editor.modules": early}),
        hypernetwork_grid(MEND(last, first_step=0.1), single, {"editor.modules": middle}, {"editor.modules": early}),
        *untrained_grids(layers),
        *closed,
        *memory_grids(layers),
    )
