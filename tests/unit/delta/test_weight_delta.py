"""Weight deltas: files, digests, compression and sums."""

from __future__ import annotations

import torch

from errata.delta.accumulator import Accumulator
from errata.delta.parts import Dense, LowRank
from errata.delta.weight_delta import WeightDelta, chained, in_series
from tests.unit.delta.parts_under_test import COLUMNS, PARTS, ROWS, a_low_rank


def test_a_saved_delta_is_loaded_with_the_same_bits(tmp_path):
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


def test_the_digest_depends_on_values_and_not_on_memory_layout():
    part = a_low_rank()
    other = LowRank(part.U_OR.T.contiguous().T, part.V_IR)
    assert not other.U_OR.is_contiguous()
    assert WeightDelta({"a": part}).digest() == WeightDelta({"a": other}).digest()
    assert WeightDelta({"a": part}).digest() != WeightDelta({"b": part}).digest()
    assert WeightDelta({"a": part}).digest() != WeightDelta({"a": a_low_rank(seed=1)}).digest()
    one = WeightDelta({"a": part, "b": PARTS["dense"]})
    assert one.digest() == WeightDelta(dict(reversed(one.parts.items()))).digest()


def test_one_number_that_is_not_finite_is_found():
    assert WeightDelta(PARTS).is_finite
    assert not WeightDelta({"a": Dense(torch.tensor([[float("nan")]]))}).is_finite


def test_compact_reduces_the_rank_within_the_tolerance():
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


def test_chained_adds_parts_of_different_kinds():
    deltas = [WeightDelta({"a": part, kind: part}) for kind, part in PARTS.items()]
    total = chained(deltas).parts["a"]
    assert total.kind == "dense"
    torch.testing.assert_close(total.dense(), sum(part.dense() for part in PARTS.values()))
    assert chained([]).parts == {}


def test_a_series_has_the_bits_of_its_deltas_added_one_by_one(tmp_path):
    deltas = [WeightDelta({"a": a_low_rank(rank=1 + seed % 3, seed=seed)}) for seed in range(12)]
    base = {"a": torch.randn(ROWS, COLUMNS)}
    one_by_one, together = Accumulator(base), Accumulator(base)
    for delta in deltas:
        one_by_one.add(delta)
    together.add(deltas[0])
    in_series([in_series(deltas[1:5]), *deltas[5:]]).save(tmp_path / "series")
    loaded = WeightDelta.load(tmp_path / "series")
    together.add(loaded)
    assert torch.equal(together.weight("a"), one_by_one.weight("a"))
    assert loaded.ranks() == {"a": sum(1 + seed % 3 for seed in range(1, 12))} and loaded.parts["a"].shape == (ROWS, COLUMNS)
    whole = chained([deltas[0], loaded])
    assert isinstance(whole.parts["a"], LowRank)
    torch.testing.assert_close(whole.parts["a"].dense(), one_by_one.sum_OI["a"])
    assert in_series(deltas[:1]).parts["a"] is deltas[0].parts["a"]
