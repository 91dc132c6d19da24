"""Lookup against a naive implementation, and what forced logits keep."""

from __future__ import annotations

import math

import pytest
import torch

from errata.edit_memory.bank import Bank
from errata.edit_memory.lookup import ANY, NONE, fired, forced, unit
from tests.unit.edit_memory.records import NUM_IN, SITE, a_record


def a_bank(num_records: int = 5, threshold: float = 0.5) -> Bank:
    records = [a_record(f"fact {i}", seed=i, num_rows=i % 3 + 1, threshold=threshold) for i in range(num_records)]
    return Bank("state", SITE).changed(records, ())


def naive(bank: Bank, input_I: list[float], id: int | None) -> int:
    """Compute the row by the equation, one number at a time."""
    best, found, at = -math.inf, NONE, 0
    for record in bank:
        for n in range(record.num_rows):
            key, after = record.rows["key"][n].tolist(), int(record.rows["after"][n])
            lengths = math.sqrt(sum(x * x for x in input_I)) * math.sqrt(sum(k * k for k in key))
            cosine = sum(x * k for x, k in zip(input_I, key, strict=True)) / lengths
            if (after in (ANY, id)) and cosine >= float(record.rows["threshold"][n]) and cosine > best:
                best, found = cosine, at
            at += 1
    return found


@pytest.mark.parametrize("has_ids", [True, False])
def test_the_row_that_fires_is_that_of_a_naive_implementation(has_ids: bool) -> None:
    bank, generator = a_bank(), torch.Generator().manual_seed(1)
    key_NI, after_N = bank.rows["key"], bank.rows["after"]
    near_TI = torch.cat([key_NI, key_NI]) + 0.06 * torch.randn(2 * len(key_NI), NUM_IN, generator=generator)
    far_TI = torch.randn(6, NUM_IN, generator=generator)
    ids_T = torch.cat([after_N, after_N + 1, torch.arange(6)])
    input_TI = 3.0 * torch.cat([near_TI, far_TI])
    row_T = fired(bank.rows, input_TI, ids_T if has_ids else None).row_T.tolist()
    expected = [naive(bank, x, int(id) if has_ids else None) for x, id in zip(input_TI.tolist(), ids_T, strict=True)]
    assert row_T == expected
    assert set(row_T[-6:]) == {NONE} and len(set(row_T)) > 4
    alone = [int(fired(bank.rows, x[None], ids_T[i : i + 1] if has_ids else None).row_T) for i, x in enumerate(input_TI)]
    assert alone == row_T


def test_the_score_is_the_cosine_of_the_nearest_row_that_may_fire() -> None:
    bank = a_bank(threshold=2.0)
    found = fired(bank.rows, bank.rows["key"][:1] * 7, torch.tensor([-5]))
    assert found.row_T.tolist() == [NONE] and float(found.score_T) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_forced_logits_are_finite_and_certain_and_others_keep_their_bits(
    dtype: torch.dtype, scale: float, cap: float | None
) -> None:
    bank = a_bank()
    logits_TV = (scale * torch.randn(4, 30, generator=torch.Generator().manual_seed(0))).to(dtype)
    row_T = torch.tensor([NONE, 3, NONE, 0])
    made_TV = forced(bank.rows, row_T, logits_TV)
    assert made_TV.dtype == dtype and torch.equal(made_TV[::2], logits_TV[::2])
    capped_TV = made_TV if cap is None else torch.tanh(made_TV / cap) * cap
    log_probs_TV = capped_TV[1::2].float().log_softmax(-1)
    assert log_probs_TV.argmax(-1).tolist() == bank.rows["token"][[3, 0]].tolist()
    assert log_probs_TV.amax(-1).min() > -0.01 and bool(torch.isfinite(log_probs_TV).all())
    penalised_TV = torch.where(made_TV > 0, made_TV / 1.3, made_TV * 1.3)
    assert torch.equal(penalised_TV[1::2].argmax(-1), bank.rows["token"][[3, 0]])


def test_logits_are_the_same_object_where_nothing_fires() -> None:
    logits_TV = torch.randn(3, 30)
    assert forced(a_bank().rows, torch.full((3,), NONE), logits_TV) is logits_TV


def test_a_zero_state_fires_nothing() -> None:
    assert bool(torch.isfinite(unit(torch.zeros(1, 4))).all())
    assert fired(a_bank().rows, torch.zeros(1, NUM_IN), None).row_T.tolist() == [NONE]
