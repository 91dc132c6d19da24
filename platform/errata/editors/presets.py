"""Presets: the matrices and constants of each editor for known models, with their sources.

`Editor.preset(name)` reads this table, and so do `errata serve --preset`, `errata bench` and the plans of hypernetwork editors
(jobs/plans.py). A row's name is its model's, with a dataset's behind it if it is for one: `llama3_8b`, `llama3_8b_fever`.
Fields are those of the editor's class, with dots for nested ones; the class's defaults apply to the others.
docs/plans.md shows the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

# published: from the method's paper or its authors' code, or from a later paper that compares with it; toolkit: from
# EasyEdit; extrapolated: from no paper, by the rule that the row names; testbed: chosen on the testbed's validation edits.
Basis = Literal["published", "toolkit", "extrapolated", "testbed"]


@dataclass(frozen=True)
class KnownModel:
    """A model's name on the Hugging Face hub, and the dtype that it is edited in."""

    hub: str
    dtype: str = "bfloat16"


MODELS = {
    "llama3_8b": KnownModel("meta-llama/Meta-Llama-3-8B-Instruct"),
    "gemma2_9b": KnownModel("google/gemma-2-9b-it"),
    "mistral_7b": KnownModel("mistralai/Mistral-7B-v0.3"),
    "qwen2_5_7b": KnownModel("Qwen/Qwen2.5-7B-Instruct"),
    "qwen3_8b": KnownModel("Qwen/Qwen3-8B"),
    "phi4": KnownModel("microsoft/phi-4"),
    "gpt_j": KnownModel("EleutherAI/gpt-j-6b"),
    "gpt2_xl": KnownModel("openai-community/gpt2-xl", dtype="float32"),
}


@dataclass(frozen=True)
class Preset:
    """A row of the table. `editor` is a class; subclasses without rows of their own, such as R-ROME of ROME, have its rows.

    The row is for each of `datasets`; `""` means any other one. `training` is the length of a hypernetwork's training, in
    fields of `Schedule`.
    """

    editor: str
    model: str
    modules: tuple[str, ...]
    fields: Mapping[str, Any]
    source: str
    datasets: tuple[str, ...] = ("",)
    basis: Basis = "published"
    training: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.model}_{dataset}" if dataset else self.model for dataset in self.datasets)

    def dataset_of(self, name: str) -> str:
        """Return the dataset that one of the row's names is for."""
        return self.datasets[self.names.index(name)]


def layers(first: int, last: int, *matrices: str) -> tuple[str, ...]:
    """Return the MLP matrices of the blocks `first` to `last`, inclusive, in Llama's naming."""
    return tuple(f"layers.{layer}.mlp.{matrix}" for layer in range(first, last + 1) for matrix in matrices)


def blocks(first: int, last: int, *matrices: str) -> tuple[str, ...]:
    """Return the MLP matrices of the blocks `first` to `last`, inclusive, in GPT-2's naming."""
    return tuple(f"h.{block}.mlp.{matrix}" for block in range(first, last + 1) for matrix in matrices)


GATE_UP = ("gate_proj", "up_proj")
ALL_THREE = (*GATE_UP, "down_proj")

# --- hypernetworks

# Without `first_step` and `first_ridge`, the policy starts at η = 1e-6 (MEND: 1e-4) and λ = 1.
_HYPERNETWORK = {
    "centred": True,
    "first_step": None,
    "first_ridge": None,
    "metric_strength": 0.0,
    "reward.score_prompts": False,
}

_RLEDIT: dict[str, Any] = _HYPERNETWORK | {
    "rank": 1024,
    "num_blocks": 4,
    "learning_rate": 1e-5,
    "reward.locality_weight": 0.6,
    "reward.update_penalty": 1e-4,
    "reward.backtrack_decay": 0.95,
    "reward.backtrack_depth": 9,  # ten batches with the current one, as published
    "reward.discount": 1.0,
}
# The published training is one sequence of 400 batches of 20 with one step at its end; here, 400 steps on episodes of 20.
_RLEDIT_TRAINING = {"train_steps": 400, "batches": 20, "batch_size": 20}
_RLEDIT_DATA = ("", "zsre", "counterfact", "fever")


def _rledit(
    model: str,
    modules: tuple[str, ...],
    source: str = "RLEdit (2502.05759) and its code",
    datasets: tuple[str, ...] = ("",),
    basis: Basis = "published",
) -> Preset:
    return Preset("RLEdit", model, modules, _RLEDIT, source, datasets, basis, _RLEDIT_TRAINING)


_MALMEN: dict[str, Any] = _HYPERNETWORK | {
    "rank": 1920,
    "num_blocks": 2,
    "learning_rate": 1e-5,
    "reward.locality_weight": 1.0,
    "reward.update_penalty": 0.0,
}
_MEND: dict[str, Any] = _MALMEN | {"learning_rate": 1e-6, "reward.edit_weight": 0.1}
# Published: up to 100,000 single edits, with the gradients of ten in a step.
_MEND_TRAINING = {"train_steps": 10_000, "episodes": 10, "batches": 1, "batch_size": 1}


def _mend(model: str, modules: tuple[str, ...], source: str, basis: Basis = "published") -> Preset:
    return Preset("MEND", model, modules, _MEND, source, basis=basis, training=_MEND_TRAINING)


HYPERNETWORKS = (
    _rledit("llama3_8b", layers(22, 30, *GATE_UP), datasets=("", "counterfact", "fever")),
    _rledit("llama3_8b", layers(11, 15, "gate_proj") + layers(18, 24, "up_proj"), datasets=("zsre",)),
    _rledit("gemma2_9b", layers(32, 40, *GATE_UP), datasets=_RLEDIT_DATA),
    _rledit("mistral_7b", layers(17, 18, "down_proj"), datasets=_RLEDIT_DATA),
    _rledit("gpt_j", blocks(22, 27, "fc_out"), "RLEdit's code (its MALMEN setting)"),
    _rledit("gpt2_xl", blocks(32, 40, "c_proj"), "RLEdit's code"),
    _rledit("qwen2_5_7b", layers(18, 26, *GATE_UP), "UltraEdit's layers", basis="extrapolated"),
    _rledit("phi4", layers(30, 38, "down_proj"), "UltraEdit's layers", basis="extrapolated"),
    _rledit("qwen3_8b", layers(26, 34, *GATE_UP), "the nine blocks before the last, as in Llama-3", basis="extrapolated"),
    # Published: one pass over the train split, which is about this many batches.
    *(
        Preset(
            "MALMEN",
            "gpt_j",
            blocks(22, 27, "fc_out"),
            _MALMEN,
            "MALMEN (2311.04661)",
            datasets,
            training={"train_steps": steps, "batches": 1, "episodes": 1, "batch_size": size},
        )
        for datasets, steps, size in ((("", "zsre"), 318, 512), (("fever",), 102, 1024))
    ),
    Preset(
        "MALMEN",
        "gpt2_xl",
        blocks(42, 47, "c_proj"),
        _MALMEN,
        "EasyEdit",
        basis="toolkit",
        training={"train_steps": 318, "batches": 1, "episodes": 1, "batch_size": 512},
    ),
    _mend("gpt_j", blocks(25, 27, "fc_in", "fc_out"), "MEND (2110.11309)"),
    _mend("gpt2_xl", blocks(45, 47, "c_fc", "c_proj"), "EasyEdit", "toolkit"),
    _mend("llama3_8b", layers(29, 31, *ALL_THREE), "EasyEdit", "toolkit"),
    _mend("mistral_7b", layers(29, 31, *ALL_THREE), "EasyEdit", "toolkit"),
    _mend("qwen2_5_7b", layers(25, 27, *ALL_THREE), "EasyEdit", "toolkit"),
)

# --- UltraEdit

_ULTRAEDIT = {"step": 1e-6, "ridge": 1.0}


def _ultraedit(
    model: str,
    modules: tuple[str, ...],
    source: str = "UltraEdit (2505.14679) and its code",
    datasets: tuple[str, ...] = ("",),
    basis: Basis = "published",
) -> Preset:
    return Preset("UltraEdit", model, modules, _ULTRAEDIT, source, datasets, basis)


ULTRAEDIT = (
    _ultraedit("llama3_8b", layers(11, 15, "gate_proj") + layers(18, 24, "up_proj"), datasets=("", "zsre", "wikibigedit")),
    _ultraedit("llama3_8b", layers(22, 30, *GATE_UP), datasets=("fever",)),
    _ultraedit("mistral_7b", layers(29, 30, "down_proj"), datasets=("", "zsre", "fever", "wikibigedit")),
    _ultraedit("qwen2_5_7b", layers(18, 26, *GATE_UP), datasets=("", "zsre", "fever")),
    _ultraedit("qwen2_5_7b", layers(19, 26, *GATE_UP), datasets=("wikibigedit",)),
    _ultraedit("phi4", layers(30, 38, "down_proj"), datasets=("", "wikibigedit")),
    _ultraedit("gpt_j", blocks(18, 26, "fc_out"), datasets=("", "zsre")),
    _ultraedit("gpt_j", blocks(25, 26, "fc_out"), datasets=("fever",)),
    _ultraedit("gpt_j", blocks(19, 26, "fc_out"), datasets=("wikibigedit",)),
    _ultraedit("gemma2_9b", layers(32, 40, *GATE_UP), "RLEdit's layers", basis="extrapolated"),
    _ultraedit("gpt2_xl", blocks(32, 40, "c_proj"), "RLEdit's layers", basis="extrapolated"),
    _ultraedit("qwen3_8b", layers(26, 34, *GATE_UP), "the nine blocks before the last, as in Llama-3", basis="extrapolated"),
)

# --- locate-then-edit


def _search(num_steps: int, learning_rate: float, decay: float, clamp: float) -> dict[str, Any]:
    found = {"num_steps": num_steps, "learning_rate": learning_rate, "decay": decay, "clamp": clamp}
    return {f"search.{name}": value for name, value in (found | {"kl_weight": 0.0625, "loss_floor": 0.05}).items()}


_EASY = _search(25, 0.5, 1e-3, 4.0)  # EasyEdit's, for every method and newer model.
_GPT_ROME = _search(20, 0.5, 0.5, 4.0)

ROME = (
    Preset("ROME", "gpt2_xl", blocks(17, 17, "c_proj"), _GPT_ROME | {"use_moments": True}, "ROME (2202.05262)"),
    Preset("ROME", "gpt_j", blocks(5, 5, "fc_out"), _GPT_ROME | {"use_moments": True}, "ROME (2202.05262)"),
    Preset("ROME", "llama3_8b", layers(5, 5, "down_proj"), _EASY | {"use_moments": False}, "AlphaEdit's code"),
    *(
        Preset("ROME", model, layers(5, 5, "down_proj"), _EASY | {"use_moments": False}, "EasyEdit", basis="toolkit")
        for model in ("mistral_7b", "qwen2_5_7b")
    ),
)

_AT_GPT2_XL = (blocks(13, 17, "c_proj"), _search(20, 0.5, 0.5, 0.75))
_AT_GPT_J = (blocks(3, 8, "fc_out"), _search(25, 0.5, 0.5, 0.75))
_AT_LLAMA3 = (layers(4, 8, "down_proj"), _search(25, 0.1, 0.5, 0.75))
_IN_EASYEDIT = (layers(4, 8, "down_proj"), _EASY)


def _multi_layer(
    editor: str,
    model: str,
    layers_and_search: tuple[tuple[str, ...], Mapping[str, Any]],
    own: Mapping[str, Any],
    source: str,
    basis: Basis = "published",
) -> Preset:
    modules, search = layers_and_search
    return Preset(editor, model, modules, {**search, **own}, source, basis=basis)


def _memit(weight: float) -> dict[str, Any]:
    return {"moment_weight": weight}


def _alphaedit(ridge: float) -> dict[str, Any]:
    return {"ridge": ridge, "threshold": 2e-2, "relative": False}


def _nse(weight: float, alpha: float, upper: float, neurons: float) -> dict[str, Any]:
    own = {"moment_weight": weight, "alpha": alpha, "upper": upper, "neurons": neurons}
    return own | {"relative": False, "max_iterations": 3}


MULTI_LAYER = (
    _multi_layer("MEMIT", "gpt2_xl", _AT_GPT2_XL, _memit(20_000.0), "MEMIT (2210.07229)"),
    _multi_layer("MEMIT", "gpt_j", _AT_GPT_J, _memit(15_000.0), "MEMIT (2210.07229)"),
    _multi_layer("MEMIT", "llama3_8b", _AT_LLAMA3, _memit(15_000.0), "AlphaEdit's code"),
    _multi_layer("MEMIT", "mistral_7b", _IN_EASYEDIT, _memit(15_000.0), "EasyEdit", "toolkit"),
    _multi_layer("MEMIT", "qwen2_5_7b", _IN_EASYEDIT, _memit(15_000.0), "EasyEdit", "toolkit"),
    _multi_layer("AlphaEdit", "gpt2_xl", _AT_GPT2_XL, _alphaedit(10.0), "AlphaEdit (2410.02355)"),
    _multi_layer("AlphaEdit", "gpt_j", _AT_GPT_J, _alphaedit(10.0), "AlphaEdit (2410.02355)"),
    _multi_layer("AlphaEdit", "llama3_8b", _AT_LLAMA3, _alphaedit(10.0), "AlphaEdit (2410.02355)"),
    _multi_layer("AlphaEdit", "qwen2_5_7b", _IN_EASYEDIT, _alphaedit(1.0), "EasyEdit", "toolkit"),
    _multi_layer("NSE", "gpt2_xl", _AT_GPT2_XL, _nse(10_000.0, 35.0, 150.0, 1.0), "NSE (2410.04045)"),
    _multi_layer("NSE", "gpt_j", _AT_GPT_J, _nse(15_000.0, 15.0, 100.0, 0.8), "NSE (2410.04045)"),
    _multi_layer("NSE", "llama3_8b", _AT_LLAMA3, _nse(15_000.0, 2.5, 50.0, 1.0), "NSE (2410.04045)"),
)

# --- fine-tuned

_FTL = {"num_epochs": 25, "learning_rate": 5e-4, "loss_floor": 1e-2}
_UNCONSTRAINED = _FTL | {"epsilon": float("inf")}  # Plain fine-tuning, without the constraint of FT-L.

FTL = (
    Preset("FTL", "gpt2_xl", blocks(0, 0, "c_proj"), _FTL | {"epsilon": 5e-4}, "ROME (2202.05262)"),
    Preset("FTL", "gpt_j", blocks(0, 0, "fc_out"), _FTL | {"epsilon": 5e-5}, "ROME (2202.05262)"),
    Preset("FTL", "llama3_8b", layers(21, 21, "down_proj"), _UNCONSTRAINED, "AlphaEdit's code"),
    Preset("FTL", "mistral_7b", layers(21, 21, "down_proj"), _UNCONSTRAINED, "EasyEdit", basis="toolkit"),
    Preset("FTL", "qwen2_5_7b", layers(27, 27, "down_proj"), _UNCONSTRAINED, "EasyEdit", basis="toolkit"),
)

# --- the testbed's Llama

# A model of four blocks retrieves its facts at the last prompt token, and its answers are one word: a change at the subject
# hardly generalises to rephrasings, and all edits of one person would have the same key. Its prompts are whole sentences, so
# it has never seen a context before one, but for notes (`World.notes`).
_TESTBED: dict[str, Any] = {
    "position": "prompt",
    "context_words": (),
    "search.num_steps": 25,
    "search.learning_rate": 0.3,
    "search.decay": 0.0,
    "search.clamp": 4.0,
    "search.kl_weight": 0.0,
    "search.loss_floor": 0.02,
}

TESTBED = tuple(
    Preset(editor, "testbed", layers(3, 3, "down_proj"), _TESTBED | own, "docs/editors.md", basis="testbed")
    for editor, own in (
        ("ROME", {"floor": 1e-4}),
        ("MEMIT", {"moment_weight": 300.0, "floor": 1e-2}),
        ("AlphaEdit", {"ridge": 1.0, "threshold": 1e-4, "relative": True}),
        ("NSE", {"moment_weight": 300.0, "floor": 1e-2, "alpha": 0.1, "upper": float("inf"), "relative": True}),
    )
)

PRESETS: tuple[Preset, ...] = (*HYPERNETWORKS, *ULTRAEDIT, *ROME, *MULTI_LAYER, *FTL, *TESTBED)


def presets_of(kind: type) -> dict[str, Preset]:
    """Return the presets of an editor's class by name or, if it has none, those of its nearest base class."""
    for each in kind.__mro__:
        if found := {name: row for row in PRESETS if row.editor == each.__name__ for name in row.names}:
            return found
    return {}


def preset_of(kind: type, name: str) -> Preset:
    """Return a preset by name. Raises `ValueError` with the names of the presets."""
    found = presets_of(kind)
    if name not in found:
        there = f"there are {', '.join(found)}" if found else "it has none: set its fields"
        raise ValueError(f"{kind.__name__} has no preset {name!r}; {there}")
    return found[name]


def in_short(modules: Iterable[str]) -> str:
    """Abbreviate module names: `gate_proj 11-15, up_proj 18-24`."""
    where: dict[str, list[int]] = {}
    for module in modules:
        found = re.search(r"\.(\d+)\.", f".{module}")
        where.setdefault(module.rpartition(".")[2], []).extend([int(found[1])] if found else [])
    spans: dict[str, list[str]] = {}
    for matrix, numbers in where.items():
        spans.setdefault(", ".join(_spans(sorted(numbers))) or "every block", []).append(matrix)
    return ", ".join(f"{' + '.join(matrices)} {span}" for span, matrices in spans.items())


def _spans(numbers: list[int]) -> list[str]:
    """Group consecutive numbers: [1, 2, 3, 7] gives 1-3 and 7."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda each: each[1] - each[0])]
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
