"""Moves of the head that name the head which they expect."""

from __future__ import annotations

import asyncio

import pytest

from errata.ledger import HeadMoved
from tests.fakes.edit_worker import apply, make_worker, post, replicas_of, states


@pytest.mark.parametrize("move", ["rollback", "revert"])
def test_a_move_that_expects_another_head_changes_nothing(tmp_path, move):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker, 1)
    apply(worker, 1)

    def moved(expected):
        asked = {
            "rollback": lambda: worker.rollback(1, None, expected),
            "revert": lambda: worker.revert(ids[:1], [], "auto", None, expected),
        }
        return asyncio.run(asked[move]())

    with pytest.raises(HeadMoved, match="the live version is 2, and not 1"):
        moved(1)
    assert worker.live_model.ledger.head == 2 and replicas_of(worker).served == [1, 2]
    assert states(worker, ids) == [("applied", 1), ("applied", 2)]
    assert moved(2)["version"] == {"rollback": 1, "revert": 3}[move]
