"""Weights of a version: the same bits on every path, and nothing changed by a delta that does not fit."""

from __future__ import annotations

import pytest
import torch

from errata.delta.accumulator import CHUNK_ROWS, Accumulator, EditedModel
from errata.delta.parts import Dense, LowRank, Series, Sparse
from errata.delta.weight_delta import WeightDelta
from errata.model.matrices import find_matrices
from tests.unit.delta.parts_under_test import COLUMNS, ROWS, a_low_rank

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


def test_the_base_is_restored_exactly_in_bf16():
    base = {"a": torch.randn(ROWS, COLUMNS).bfloat16()}
    accumulator = Accumulator(base)
    for seed in range(5):
        accumulator.add(WeightDelta({"a": a_low_rank(seed=seed)}))
    assert accumulator.weight("a").dtype == torch.bfloat16
    total = sum(a_low_rank(seed=seed).dense() for seed in range(5))
    assert torch.equal(accumulator.weight("a"), (base["a"].float() + total).bfloat16())
    assert accumulator.reset() == {"a"}
    assert torch.equal(accumulator.weight("a"), base["a"])


@pytest.mark.parametrize("first", range(4))
def test_a_sum_in_place_has_the_same_bits_and_does_not_change_the_deltas(first):
    generator = torch.Generator().manual_seed(first)
    rows, columns = 3 * CHUNK_ROWS + 7, 40
    base = {"a": torch.randn(rows, columns, generator=generator).bfloat16()}
    sides = [torch.randn(size, 3, generator=generator) for size in (rows, columns)]
    full, half = LowRank(*sides), LowRank(*(side.half() for side in sides))
    few = Sparse(torch.tensor([3, 90, rows * columns - 1]), torch.randn(3, generator=generator), (rows, columns))
    parts = [full, half, few, Dense(full.dense())]
    parts = [*parts[first:], *parts[:first], Series((full, few))]
    before = [part.dense().clone() for part in parts]
    one, other = Accumulator(base), Accumulator(base, in_place=True)
    for part in parts:
        one.add(WeightDelta({"a": part}))
        other.add(WeightDelta({"a": part}))
        assert torch.equal(one.sum_OI["a"], other.sum_OI["a"]) and torch.equal(one.weight("a"), other.weight("a"))
        assert torch.equal(one.weight("a"), (base["a"].float() + one.sum_OI["a"]).bfloat16())
    assert all(torch.equal(part.dense(), was) for part, was in zip(parts, before, strict=True))
    torch.testing.assert_close(one.sum_OI["a"], sum(change.float() for change in before))


def test_a_delta_that_does_not_fit_changes_nothing(tiny_model, random_delta):
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, MATRICES))
    before = tiny_model.module.get_submodule(MATRICES[0]).weight.clone()
    wrong = WeightDelta({**random_delta(0).parts, MATRICES[1]: a_low_rank(), "nowhere": a_low_rank()})
    for act in (lambda: edited.add(wrong), lambda: edited.set([random_delta(0), wrong])):
        with pytest.raises(ValueError, match=r"\(64, 96\), its delta \(6, 5\); nowhere is not"):
            act()
    assert torch.equal(tiny_model.module.get_submodule(MATRICES[0]).weight, before)


def test_a_saved_content_can_be_restored(tiny_model, random_delta):
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, MATRICES))
    weight = tiny_model.module.get_submodule(MATRICES[0]).weight
    edited.set([random_delta(0), random_delta(1)])
    there, content = weight.clone(), edited.content()
    edited.add(random_delta(2))
    further = weight.clone()
    edited.set([])
    edited.set([], content)
    assert torch.equal(weight, there)
    edited.set([random_delta(2)], content)
    assert torch.equal(weight, further)
