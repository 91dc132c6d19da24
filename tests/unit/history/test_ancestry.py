"""Ancestors of a version: chains, branches, and reverts by replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.history.ancestry import Ancestry
from errata.ledger import Ledger


@pytest.fixture
def branched(ledger: Ledger, random_delta: Callable[..., WeightDelta]) -> Ledger:
    """Make versions 1-2-3, then 4 on 1, and 5 that replays 4 without version 1."""
    cards: dict[int, dict[str, Any]] = {5: {"reverted": {"edits": ["a"], "versions": [1], "mode": "replay", "head": 4}}}
    for number, parent in enumerate((0, 1, 2, 1, 0), 1):
        if parent == 1 and number == 4:
            ledger.move_head(1)
        card = cards.get(number, {})
        ledger.append(parent, random_delta(number), EditorState(), (), card, ("E", "p"), expected_head=ledger.head)
    return ledger


def ancestors(ancestry: Ancestry) -> list[int]:
    return [number for number in range(10) if number in ancestry]


def test_the_ancestors_are_the_chain(branched: Ledger) -> None:
    assert ancestors(Ancestry.of(branched, 0)) == [0]
    assert ancestors(Ancestry.of(branched, 3)) == [0, 1, 2, 3]
    assert ancestors(Ancestry.of(branched, 4)) == [0, 1, 4]
    assert Ancestry.of(branched, 3).runs == (range(4),), "a chain of any length is one run"


def test_a_replay_follows_the_head_that_it_was_made_for(branched: Ledger) -> None:
    assert branched.chain(5) == [5] and ancestors(Ancestry.of(branched, 5)) == [0, 1, 4, 5]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("known", range(6))
def test_known_ancestors_change_nothing(branched: Ledger, number: int, known: int) -> None:
    assert Ancestry.of(branched, number, Ancestry.of(branched, known)) == Ancestry.of(branched, number)


def test_known_ancestors_are_not_looked_up_again(branched: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    known, seen, version = Ancestry.of(branched, 2), list[int](), branched.version
    monkeypatch.setattr(branched, "version", lambda number: seen.append(number) or version(number))
    Ancestry.of(branched, 3, known)
    assert seen == [3]
