"""Budgets of walks: versions, seconds, rests beside other work, and stops."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.history import budget as budgets
from errata.history.budget import WalkBudget, WalkStopped, WalkTooLong
from errata.history.checkout import Checkout
from errata.history.diff import diff
from errata.ledger import Ledger
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.conftest import MATRICES


@pytest.fixture
def chain(ledger: Ledger, random_delta: Callable[..., WeightDelta]) -> Ledger:
    """Make a ledger of six versions."""
    for number in range(6):
        ledger.append(number, random_delta(number), EditorState(), [], {}, ("Any", ""))
    return ledger


def test_versions_beyond_the_budget_are_not_read(chain: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert diff(chain, 2, 6, WalkBudget(max_versions=4))["common"] == 2
    monkeypatch.setattr(chain, "delta", lambda number: pytest.fail("a delta is read"))
    with pytest.raises(WalkTooLong, match=r"4 versions would be read, and the limit is 3 \(max_walk_versions=3\)"):
        diff(chain, 2, 6, WalkBudget(max_versions=3))


def test_a_walk_ends_with_its_time(chain: Ledger) -> None:
    with pytest.raises(WalkTooLong, match=r"6 versions .* used up, 1e-09 s \(max_walk_s=1e-09\)") as ended:
        diff(chain, 0, 6, WalkBudget(max_s=1e-9))
    assert str(pickle.loads(pickle.dumps(ended.value))) == str(ended.value), "it crosses to another process"


def test_a_stopped_walk_ends_at_its_next_step(chain: Ledger) -> None:
    budget = WalkBudget()
    budget.stop()
    with pytest.raises(WalkStopped):
        diff(chain, 0, 6, budget)


def test_a_walk_rests_while_others_work_for_as_long_as_it_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    now, rests = [0.0], list[float]()
    monkeypatch.setattr(budgets.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(budgets.time, "sleep", rests.append)
    busy = [True]
    budget = WalkBudget(is_busy=lambda: busy[0])
    for step_s, is_busy in ((0.05, True), (5.0, True), (0.05, False)):
        now[0] += step_s
        busy[0] = is_busy
        budget.step()
    assert rests == [pytest.approx(0.05), budgets.MAX_PAUSE_S]


def test_a_checkout_steps_with_every_delta(tiny_model: LanguageModel, chain: Ledger) -> None:
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, MATRICES))
    steps = []
    budget = WalkBudget(max_versions=9)
    budget.step = lambda: steps.append(time.monotonic())  # type: ignore[method-assign]
    checkout = Checkout(edited, chain, 0, budget)
    checkout.to(6)
    assert budget.num_versions == 6 and len(steps) == 1 + 6
    with pytest.raises(WalkTooLong):
        checkout.to(4)
    edited.set([])


def test_a_copy_has_matrices_of_its_own_and_shares_the_rest(
    tiny_model: LanguageModel, random_delta: Callable[..., WeightDelta]
) -> None:
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, MATRICES))
    edited.add(random_delta(1))
    before = {name: each.clone() for name, each in tiny_model.module.named_parameters()}
    copied = edited.copy()
    ids_BS = torch.tensor([[5, 6, 7]])
    assert torch.equal(copied.module(ids_BS).logits, tiny_model.module(ids_BS).logits)
    copied.add(random_delta(2))
    assert not torch.equal(copied.module(ids_BS).logits, tiny_model.module(ids_BS).logits)
    assert all(torch.equal(each, before[name]) for name, each in tiny_model.module.named_parameters())
    shared = {id(each) for each in copied.module.parameters()} & {id(each) for each in tiny_model.module.parameters()}
    assert len(shared) == len(before) - len(MATRICES)
    expected = copied.content().sums
    edited.set([random_delta(1), random_delta(2)])
    assert all(torch.equal(expected[name], edited.content().sums[name]) for name in MATRICES)
    edited.set([])
