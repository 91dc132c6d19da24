"""Moves of the head that name the head which they expect."""

from __future__ import annotations

import asyncio

import pytest

from errata.ledger import HeadMoved, LedgerConflict
from serving.worker.journal import Journal, JournalFailed
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


def test_a_revert_that_meets_another_writer_is_made_on_its_head_the_next_time(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker)
    model = worker.live_model
    model.faults = [LedgerConflict(1, 0)]
    model.ledger.head = 0  # Moved by another process.
    with pytest.raises(LedgerConflict):
        asyncio.run(worker.revert(ids[:1], [], "auto"))
    assert model.version == 0


@pytest.mark.parametrize("move", ["rollback", "revert"])
def test_a_move_that_was_made_is_answered_although_the_journal_cannot_be_read(tmp_path, monkeypatch, move):
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)

    def fail(self, id):
        raise JournalFailed("the journal of edits cannot be read: disk I/O error")

    async def moved():
        with worker.edit_loop.waiters.event_bus.listener():
            if move == "rollback":
                worker.journal.mark_reverted({ids[0]: 1}, {})  # So that there is something to publish.
                return await worker.edit_loop.rollback(0)
            return await worker.edit_loop.revert(ids, [], "auto")

    worker.edit_loop.reconciler.is_settled = True
    monkeypatch.setattr(Journal, "get", fail)
    assert asyncio.run(moved())["version"] == {"rollback": 0, "revert": 2}[move]
    assert worker.live_model.ledger.head == {"rollback": 0, "revert": 2}[move]
    assert not worker.edit_loop.reconciler.is_settled
