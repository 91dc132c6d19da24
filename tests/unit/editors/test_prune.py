"""PRUNE against its published equation, in fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.parts import Dense, LowRank, Sparse
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch, batches_of
from errata.editors import EDITORS, Editor
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.state import JoinedTensors
from errata.editors.wrappers.prune import PRUNE, prune
from errata.editors.wrappers.rect import RECT
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from tests.editors_under_test import UNDER_TEST
from tests.unit.editors.wrapped import LARGE, an_inner
from tests.unit.small_models import (
    BATCHES,
    EXACT,
    MODULES,
    SEARCH,
    a_model,
    played,
    relative,
    weight_of,
)

PRUNE_IN_FP32 = 5e-5  # seen: 4.7e-6
ANY_IN_FP32 = 2e-5  # seen: 2.0e-6
FINE_TUNED = 4e-4  # seen: 4.1e-5; FT-L descends in fp32, and Adam's steps are nearly signs


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


def restrained(change_OI: Tensor, top: float, restraint: str, base: float) -> Tensor:
    """Return Σ f(σ_j) a_j b_jᵀ: f(σ) = σ below `top`, else log_base σ - log_base top + top, or the mean of σ and `top`."""
    left_OO, values_R, right_II = torch.linalg.svd(change_OI.double(), full_matrices=True)
    total_OI = torch.zeros_like(change_OI, dtype=torch.float64)
    for j, value in enumerate(values_R.tolist()):
        if value >= top:
            value = math.log(value, base) - math.log(top, base) + top if restraint == "log" else (value + top) / 2
        total_OI += value * torch.outer(left_OO[:, j], right_II[j])
    return total_OI


RESTRAINTS = [("log", math.e), ("log", 1.2), ("linear", math.e)]


def a_change(kind: str) -> LowRank | Dense | Sparse:
    """Return factors with singular values 17, 8, 3 and smaller ones, or a whole matrix with values from 12, or 6, down."""
    generator = torch.Generator().manual_seed(3)
    if kind == "low rank":
        return LowRank(
            torch.randn(32, 5, generator=generator) * torch.tensor([0.4, 0.2, 0.1, 0.01, 0.001]),
            torch.randn(48, 5, generator=generator),
        )
    matrix_OI = torch.randn(32, 48, generator=generator)
    if kind == "sparse":
        index_N = torch.randperm(matrix_OI.numel(), generator=generator)[:300].sort().values
        return Sparse(index_N, matrix_OI.flatten()[index_N], (32, 48))
    return Dense(matrix_OI)


@pytest.mark.parametrize(("restraint", "base"), RESTRAINTS)
@pytest.mark.parametrize("kind", ["low rank", "dense", "sparse"])
def test_prune_is_a_function_of_the_singular_values(kind: str, restraint: Any, base: float) -> None:
    """Some are above and some below the limit; a low-rank change keeps its rank."""
    part, top = a_change(kind), 3.0
    values = torch.linalg.svdvals(part.dense().double())
    assert float(values[0]) > top > float(values[-1])
    pruned = prune(WeightDelta({"a": part}), {"a": top}, restraint, base).parts["a"]
    assert relative(pruned.dense(), restrained(part.dense(), top, restraint, base)) < EXACT
    assert isinstance(pruned, LowRank if kind == "low rank" else Dense)
    if kind == "low rank":
        assert pruned.rank == part.rank


@pytest.mark.parametrize(("restraint", "base"), RESTRAINTS)
@pytest.mark.parametrize("kind", ["low rank", "dense", "sparse"])
def test_prune_does_not_change_a_part_without_larger_singular_values(kind: str, restraint: Any, base: float) -> None:
    """The part is the same object."""
    part = a_change(kind)
    top = float(torch.linalg.svdvals(part.dense().double())[0])
    pruned = prune(WeightDelta({"below": part, "above": part}), {"below": 1.001 * top, "above": 0.9 * top}, restraint, base)
    assert pruned.parts["below"] is part
    assert relative(pruned.parts["above"].dense(), restrained(part.dense(), 0.9 * top, restraint, base)) < EXACT


@pytest.mark.parametrize("fields", [{"restraint": "square"}, {"base": 1.0}, {"base": 0.5}])
def test_prune_refuses_an_unknown_restraint(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="restraint is log or linear"):
        PRUNE(MEMIT(), **fields)


MANY = list(batches_of(World(20).edits("test", 27), 9))


def check_restrained(
    model: LanguageModel, inner: Editor, editor: PRUNE, batches: Sequence[EditBatch], bound: float
) -> list[bool]:
    """Check that the weights are W_0 + F(S) after every batch, S being the sum of the wrapped editor's changes without PRUNE.

    Returns, for each batch, whether it was restrained.
    """
    spec = find_matrices(model.module, inner.modules)
    base = {name: weight_of(model, name) for name in spec.names}
    free, _, _ = played(inner, model, batches)
    edited, state = EditedModel(model.module, spec), editor.start(model, spec)
    sums = {name: torch.zeros_like(weight) for name, weight in base.items()}
    was_restrained = []
    for batch, alone in zip(batches, free, strict=True):
        delta, state = editor.edit(model, batch, state)
        edited.add(delta)
        above = False
        for name, part in alone:
            sums[name] = sums[name] + part.dense().double()
            top = float(torch.linalg.svdvals(base[name])[0])
            above |= float(torch.linalg.svdvals(sums[name])[0]) > top
            wanted_OI = restrained(sums[name], top, editor.restraint, editor.base)
            assert relative(weight_of(model, name) - base[name], wanted_OI) < bound, name
        was_restrained.append(above)
    edited.set([])
    return was_restrained


# With base 1.2, values above a σ_max below 1 / log 1.2 grow, here up to a hundredfold, and rounding with them: not over MEMIT.
@pytest.mark.parametrize(
    ("inner", "restraint", "base"),
    [*(("ROME", *each) for each in RESTRAINTS), ("MEMIT", *RESTRAINTS[0]), ("MEMIT", *RESTRAINTS[2])],
)
def test_the_weights_are_the_base_and_the_restrained_sum(model: LanguageModel, inner: str, restraint: Any, base: float) -> None:
    """The sum outgrows the matrices in the sequence and changes from factors to a whole matrix."""
    plain = an_inner(inner, model, SEARCH if inner == "ROME" else LARGE)
    assert check_restrained(model, plain, PRUNE(plain, restraint=restraint, base=base), MANY, EXACT)[-1]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("inner", ["ROME", "NSE"])
def test_prune_in_fp32_agrees_with_fp64(kind: str, inner: str) -> None:
    """Compare with the wrapped editor alone on the same model, with sums and singular values in fp64."""
    model = a_model(kind, torch.float32)
    plain = an_inner(inner, model, LARGE)
    assert check_restrained(model, plain, PRUNE(plain), BATCHES, PRUNE_IN_FP32)[-1]


@pytest.mark.parametrize("inner", ["AlphaEdit", "NSE", "UltraEdit", "FT-L"])
def test_prune_restrains_any_editor(model: LanguageModel, inner: str) -> None:
    """The editors include one with past keys, one that looks back at the unedited model, and one with a state of its own."""
    plain = an_inner(inner, model, LARGE)
    if isinstance(plain, UltraEdit):
        plain = replace(plain, step=0.03)
    if isinstance(plain, FTL):
        plain = replace(plain, epsilon=0.1, learning_rate=0.1)
    bound = FINE_TUNED if isinstance(plain, FTL) else EXACT
    assert check_restrained(model, plain, PRUNE(plain, restraint="linear"), BATCHES, bound)[-1]


def test_prune_does_not_join_the_keys_of_the_wrapped_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model("llama")
    editor = PRUNE(an_inner("AlphaEdit", model))
    _, states, _ = played(editor, model, BATCHES[:2])
    read = list[str]()
    joined = JoinedTensors.__getitem__
    monkeypatch.setattr(JoinedTensors, "__getitem__", lambda self, name: (read.append(name), joined(self, name))[1])
    editor.edit(model, BATCHES[2], states[-1])
    assert "top|model.layers.0.mlp.down_proj" in read
    assert not {name for name in read if "mlp.down_proj" in name and name.startswith("host|")}


def test_prune_restrains_rect(model: LanguageModel) -> None:
    """RECT sees the weights without restraint."""
    plain = RECT(an_inner("ROME", model, LARGE), kept=0.2)
    assert check_restrained(model, plain, PRUNE(plain, restraint="linear"), BATCHES, EXACT)[-1]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, one in UNDER_TEST.items()
        if one.made_of.kinds and name in EDITORS and not issubclass(EDITORS[name], EditorWrapper)
    ],
)
def test_prune_runs_over_every_editor(tiny_model: LanguageModel, name: str) -> None:
    """Two batches of each editor: its state and that of PRUNE stay apart."""
    inner = UNDER_TEST[name].build(tiny_model)
    check_restrained(tiny_model, inner, PRUNE(inner), BATCHES[:2], ANY_IN_FP32)
