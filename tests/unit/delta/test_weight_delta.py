from __future__ import annotations

import pytest
import torch
from torch import nn

from errata.delta.accumulator import CHUNK_ROWS, Accumulator, EditedModel
from errata.delta.parts import Dense, LowRank, Series, Sparse
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta, chained, in_series
from errata.model.matrices import MatrixSpec, ModelSpec, find_matrices

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]

ROWS, COLUMNS = 6, 5


def a_sparse() -> Sparse:
    return Sparse(torch.tensor([0, 7, 29]), torch.tensor([1.0, -2.0, 0.5]), (ROWS, COLUMNS))


def a_low_rank(rank: int = 2, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(ROWS, rank, generator=generator), torch.randn(COLUMNS, rank, generator=generator))


PARTS = {"low_rank": a_low_rank(), "sparse": a_sparse(), "dense": Dense(torch.randn(ROWS, COLUMNS))}
PARTS["series"] = Series((a_low_rank(seed=1), *PARTS.values(), a_low_rank(3, seed=2)))


@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_agrees_with_its_matrix(kind):
    part = PARTS[kind]
    assert part.kind == kind
    assert part.norm() == pytest.approx(float(part.dense().norm()), rel=1e-5)
    x = torch.randn(3, 4, COLUMNS)
    torch.testing.assert_close(part.side_branch(x), x @ part.dense().T)


def test_save_and_load(tmp_path):
    delta = WeightDelta({**PARTS, "with.bf16": LowRank(torch.ones(3, 1).bfloat16(), torch.ones(2, 1).bfloat16())})
    delta.save(tmp_path / "delta.safetensors")
    loaded = WeightDelta.load(tmp_path / "delta.safetensors")
    assert set(loaded.parts) == set(delta.parts)
    assert loaded.digest() == delta.digest()
    assert loaded.ranks() == delta.ranks() == {"low_rank": 2, "sparse": 3, "dense": 5, "series": 15, "with.bf16": 1}
    assert loaded.num_bytes == delta.num_bytes
    for name, part in delta:
        assert torch.equal(loaded.parts[name].dense(), part.dense())
        assert loaded.parts[name].kind == part.kind


def test_the_digest_is_of_the_values_not_of_the_layout(tmp_path):
    part = a_low_rank()
    other = LowRank(part.U_OR.T.contiguous().T, part.V_IR)
    assert not other.U_OR.is_contiguous()
    assert WeightDelta({"a": part}).digest() == WeightDelta({"a": other}).digest()
    assert WeightDelta({"a": part}).digest() != WeightDelta({"b": part}).digest()
    assert WeightDelta({"a": part}).digest() != WeightDelta({"a": a_low_rank(seed=1)}).digest()
    one = WeightDelta({"a": part, "b": PARTS["dense"]})
    assert one.digest() == WeightDelta(dict(reversed(one.parts.items()))).digest()


def test_is_finite():
    assert WeightDelta(PARTS).is_finite
    assert not WeightDelta({"a": Dense(torch.tensor([[float("nan")]]))}).is_finite


def test_compact_keeps_the_change_and_drops_the_rest():
    chain = chained([WeightDelta({"a": a_low_rank(seed=seed)}) for seed in (0, 1, 0, 1, 0)])
    assert chain.ranks() == {"a": 10}
    compact = chain.compact()
    assert compact.ranks() == {"a": 4}
    torch.testing.assert_close(compact.parts["a"].dense(), chain.parts["a"].dense(), rtol=1e-4, atol=1e-5)
    rough = chain.compact(tolerance=0.5)
    lost = float((rough.parts["a"].dense() - chain.parts["a"].dense()).norm())
    assert 0 < lost <= 0.5 * chain.norms()["a"] + 1e-4
    assert rough.ranks()["a"] < 4
    assert WeightDelta(PARTS).compact().parts["sparse"] is PARTS["sparse"]
    assert WeightDelta({"zero": LowRank(torch.zeros(4, 2), torch.zeros(3, 2))}).compact().norms() == {"zero": 0.0}


def test_chained_sums_mixed_kinds():
    deltas = [WeightDelta({"a": part, kind: part}) for kind, part in PARTS.items()]
    total = chained(deltas).parts["a"]
    assert total.kind == "dense"
    torch.testing.assert_close(total.dense(), sum(part.dense() for part in PARTS.values()))
    assert chained([]).parts == {}


def test_applied_is_the_edited_model_and_leaves_no_trace(tiny_model, random_delta):
    delta, ids = random_delta(0, scale=0.1), torch.tensor([[5, 6, 7]])
    module = tiny_model.module
    before, state = module(ids).logits, {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with applied(module, delta):
        beside = module(ids).logits
    with pytest.raises(KeyError), applied(module, delta):
        raise KeyError
    assert torch.equal(module(ids).logits, before)
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    EditedModel(module, find_matrices(module, MATRICES)).add(delta)
    torch.testing.assert_close(module(ids).logits, beside, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(beside, before)


def test_a_matrix_stored_the_other_way_round():
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(COLUMNS, ROWS), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    model = nn.Sequential(Conv1D())
    spec = find_matrices(model, ["0"])
    assert spec == ModelSpec((MatrixSpec("0", COLUMNS, ROWS, transposed=True),))
    x, delta = torch.randn(2, COLUMNS), WeightDelta({"0": a_low_rank()})
    with applied(model, delta):
        expected = model(x)
    EditedModel(model, spec).add(delta)
    torch.testing.assert_close(model(x), expected)


def test_going_back_is_exact_in_bf16():
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
def test_a_sum_in_place_has_the_same_bits_and_leaves_the_deltas_alone(first):
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


def test_deltas_in_series_sum_to_the_bits_of_one_after_the_other(tmp_path):
    deltas = [WeightDelta({"a": a_low_rank(rank=1 + seed % 3, seed=seed)}) for seed in range(12)]
    base = {"a": torch.randn(ROWS, COLUMNS)}
    one_by_one, at_once = Accumulator(base), Accumulator(base)
    for delta in deltas:
        one_by_one.add(delta)
    at_once.add(deltas[0])
    in_series([in_series(deltas[1:5]), *deltas[5:]]).save(tmp_path / "series")
    loaded = WeightDelta.load(tmp_path / "series")
    at_once.add(loaded)
    assert torch.equal(at_once.weight("a"), one_by_one.weight("a"))
    assert loaded.ranks() == {"a": sum(1 + seed % 3 for seed in range(1, 12))} and loaded.parts["a"].shape == (ROWS, COLUMNS)
    whole = chained([deltas[0], loaded])
    assert isinstance(whole.parts["a"], LowRank)
    torch.testing.assert_close(whole.parts["a"].dense(), one_by_one.sum_OI["a"])
    assert in_series(deltas[:1]).parts["a"] is deltas[0].parts["a"]


def test_sums_that_were_taken_are_come_back_to(tiny_model, random_delta):
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, MATRICES))
    weight = tiny_model.module.get_submodule(MATRICES[0]).weight
    edited.set([random_delta(0), random_delta(1)])
    there, sums = weight.clone(), edited.sums()
    edited.add(random_delta(2))
    further = weight.clone()
    edited.set([])
    edited.set([], sums)
    assert torch.equal(weight, there)
    edited.set([random_delta(2)], sums)
    assert torch.equal(weight, further)
