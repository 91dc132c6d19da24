"""Who competes in a suite: editors with their candidate settings, the likeliest first.

A contestant is a name and some `Candidate`s; the best on a validation stream is the one that is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from errata.editors.wrappers.oedit import OEdit, OEditPlus
from errata.editors.wrappers.prune import PRUNE
from errata.editors.wrappers.rect import RECT
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.testbed.corpus import FOLDS
from jobs.plans import demo


@dataclass(frozen=True)
class EditorSetting:
    """Settings of an editor and, if it learns, of its training; `metric_part` and `cross_fit` are as in a plan."""

    editor: Editor
    schedule: Schedule | None = None
    metric_part: str = ""
    cross_fit: bool = False

    @property
    def protects(self) -> bool:
        """Whether the editor is given the moments of the model's keys."""
        return isinstance(self.editor, LocateThenEdit | EditorWrapper)

    def part(self, split: str) -> str:
        """Of which part of the corpus its metric or moments are: one that is not to know the test facts does not know those of
        the validation stream either."""
        return FOLDS[0] if split == "validation" and self.metric_part == "train" else self.metric_part

    def __post_init__(self) -> None:
        if isinstance(self.editor, HypernetworkEditor) != (self.schedule is not None):
            raise ValueError(f"{name_of(self.editor)}: a schedule goes with an editor that learns, and only with one")


@dataclass(frozen=True)
class EditorGrid:
    """A row of the table: its candidates, the likeliest first."""

    name: str
    candidates: tuple[EditorSetting, ...]


def learned(editor: HypernetworkEditor, schedule: Schedule, *others: Mapping[str, Any]) -> EditorGrid:
    """Called by its class. `others` change fields of the first candidate: of the editor, or of the schedule."""
    first = EditorSetting(editor, schedule)
    return EditorGrid(name_of(editor), (first, *(varied(first, fields) for fields in others)))


def varied(candidate: EditorSetting, fields: Mapping[str, Any]) -> EditorSetting:
    """With some fields of the editor, its reward, its schedule or its own changed, by their names."""
    editor, schedule = candidate.editor, candidate.schedule
    assert isinstance(editor, HypernetworkEditor) and schedule is not None
    own = {name: value for name, value in fields.items() if hasattr(candidate, name)}
    in_schedule = {name: value for name, value in fields.items() if hasattr(schedule, name)}
    in_reward = {name: value for name, value in fields.items() if hasattr(editor.reward, name)}
    in_editor = {name: value for name, value in fields.items() if name not in own | in_schedule | in_reward}
    changed = replace(editor, **in_editor, reward=replace(editor.reward, **in_reward))
    return replace(candidate, editor=changed, schedule=replace(schedule, **in_schedule), **own)


def solved(name: str, *candidates: Mapping[str, Any]) -> EditorGrid:
    """An editor that learns nothing, by its name in EDITORS."""
    make: Any = EDITORS[name]
    return EditorGrid(name, tuple(EditorSetting(make(**fields)) for fields in candidates))


def solved_everywhere(layers: int) -> tuple[EditorGrid, ...]:
    """Editors that learn nothing, at two or three places each, the likeliest first: where to write matters to them most."""
    last, middle = f"layers.{layers - 1}.mlp.down_proj", f"layers.{layers // 2}.mlp.down_proj"
    early = f"layers.{layers // 2 - 1}.mlp.up_proj"
    descent = {"num_epochs": 60, "loss_floor": 5e-2}
    return (
        solved(
            "UltraEdit",
            {"modules": (middle,), "step": 3e-4},
            {"modules": (last,), "step": 3e-4},
            {"modules": (early,), "step": 1e-3},
        ),
        solved(
            "FT-L",
            *({"modules": (m,), "epsilon": e, "learning_rate": e} for m, e in ((early, 1e-2), (early, 5e-3), (last, 1e-2))),
        ),
        solved("LocFT", {"modules": (early,), **descent}, {"modules": (middle,), **descent}, {"modules": (last,), **descent}),
    )


def of_settings(name: str, *editors: Editor, metric_part: str = "") -> EditorGrid:
    return EditorGrid(name, tuple(EditorSetting(editor, metric_part=metric_part) for editor in editors))


WEIGHTS = (1000.0, 300.0, 3000.0)  # of the moment in MEMIT, the likeliest first
NULL_SPACES = ((1e-4, 1.0), (1e-4, 3.0), (3e-4, 3.0))  # AlphaEdit's threshold and ridge


def located(
    weights: tuple[float, float, float] = WEIGHTS,
    null_spaces: tuple[tuple[float, float], ...] = NULL_SPACES,
    **places: Any,
) -> tuple[EditorGrid, ...]:
    """The closed-form editors at the testbed's settings, or with other `places`: fields that say where to write."""
    weight, lighter, heavier = weights

    def memit(weight: float) -> MEMIT:
        return MEMIT.preset("testbed", moment_weight=weight, **places)

    def alphaedit(threshold: float, ridge: float) -> AlphaEdit:
        return AlphaEdit.preset("testbed", threshold=threshold, ridge=ridge, **places)

    def nse(weight: float, share: float) -> NSE:
        return NSE.preset("testbed", moment_weight=weight, neurons=share, **places)

    one = {**places, "modules": places["modules"][-1:]} if "modules" in places else places
    words: dict[str, Any] = {"context_words": ("the", "every"), "context_lengths": (5,)}
    rome, alphaedits = ROME.preset("testbed", **one), tuple(alphaedit(*chosen) for chosen in null_spaces)
    return (
        of_settings("ROME", rome, replace(rome, floor=1e-5), replace(rome, **words)),
        of_settings("R-ROME", *(RROME.preset("testbed", **one, **fields) for fields in ({}, {"floor": 1e-5}, words))),
        of_settings("MEMIT", *(memit(w) for w in weights)),
        of_settings("RECT", RECT(memit(weight)), RECT(memit(lighter)), RECT(memit(weight), kept=0.6)),
        of_settings("PRUNE", PRUNE(memit(weight), base=1.2), PRUNE(memit(lighter), base=1.2), PRUNE(memit(weight), "linear")),
        of_settings("AlphaEdit", *alphaedits),
        of_settings("AlphaEdit, train half", *alphaedits, metric_part="train"),
        of_settings("NSE", nse(weight, 1.0), nse(heavier, 1.0), nse(weight, 0.8)),
        of_settings("O-Edit", *(OEdit(rome, past_weight=w, knowledge_weight=w) for w in (50.0, 200.0, 10.0))),
        of_settings("O-Edit+", OEditPlus(rome, 0.0), OEditPlus(rome, 0.0, past_rank=64), OEditPlus(rome, 0.25, 64, 32)),
    )


def rledit(modules: tuple[str, ...]) -> HypernetworkEditor:
    """The demo's, elsewhere, and with more regard for what must stay: the streams are five to ten times as long."""
    editor = demo().editor
    return replace(editor, modules=modules, reward=replace(editor.reward, locality_weight=7.0))


def cross_fitted(editor: HypernetworkEditor, schedule: Schedule) -> EditorGrid:
    """RLEdit with a metric that knows nothing of the test facts, trained on edits that its metric did not know."""
    half_as_long = replace(schedule, burn_in=schedule.burn_in // 2)
    first = EditorSetting(editor, half_as_long, metric_part="train", cross_fit=True)
    others = (SWEPT, {"metric_strength": 1e3, "locality_weight": 15.0})
    return EditorGrid("RLEdit, train half", (first, *(varied(first, fields) for fields in others)))


# The best of 24 trials of `jobs/tune.py plan=demo trials=24 validation=140`, rounded; docs/benchmarks.md has the sweep.
SWEPT: dict[str, Any] = {
    "discount": 0.85,
    "backtrack_decay": 0.88,
    "backtrack_depth": 3,
    "update_penalty": 2.3e-4,
    "locality_weight": 2.3,
    "learning_rate": 3.2e-3,
    "first_step": 0.34,
    "metric_strength": 6e3,
    "memory": 0.78,
}


def all_editors(layers: int, schedule: Schedule, closed: tuple[EditorGrid, ...]) -> tuple[EditorGrid, ...]:
    """Three candidates each. MALMEN and MEND are trained on as many batches as RLEdit's episodes score, one at a time."""
    last, middle = (f"layers.{layers - 1}.mlp.down_proj",), (f"layers.{layers // 2}.mlp.down_proj",)
    early = (f"layers.{layers // 2 - 1}.mlp.up_proj",)
    single = replace(schedule, train_steps=schedule.batches * schedule.train_steps, batches=1, burn_in=0)
    careful = Reward(locality_weight=10.0, update_penalty=0.0)
    return (
        learned(
            rledit(last),
            schedule,
            {"locality_weight": 5.0},
            {"num_passes": 2, "first_step": 0.5, "first_ridge": 0.5, "metric_strength": 1e4, "locality_weight": 10.0},
        ),
        cross_fitted(rledit(last), schedule),
        learned(MALMEN(last, reward=careful), single, {"modules": middle}, {"modules": early}),
        learned(MEND(last, first_step=0.1), single, {"modules": middle}, {"modules": early}),
        *solved_everywhere(layers),
        *closed,
    )
