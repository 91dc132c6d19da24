"""Publication: late replicas, versions that replicas refuse, and the order of retraction and queueing."""

from __future__ import annotations

import asyncio

import pytest

from errata.generate import SwapFailed
from errata.ledger import LedgerDamaged
from serving.worker import publish
from serving.worker.edit_worker import EditWorker
from serving.worker.journal import MAX_ATTEMPTS, JournalFailed
from serving.worker.replicas import Unloadable
from tests.fakes.edit_worker import apply, logged, make_worker, post, replicas_of, states


def refuse_next(worker: EditWorker, number: int) -> None:
    """Make all replicas refuse this version at the next swap."""
    replicas_of(worker).is_behind, replicas_of(worker).faults = (
        True,
        [Unloadable(number, ["r"], "bad file")],
    )


def test_replicas_that_do_not_answer_cause_no_retraction(tmp_path):
    worker = make_worker(tmp_path)
    replicas_of(worker).faults = [SwapFailed(1, ["r"], "TimeoutError")]
    ids = post(worker, "a")
    apply(worker)
    assert states(worker, ids) == [("applied", 1)] and worker.live_model.ledger.head == 1 and replicas_of(worker).is_behind
    assert "not served by r" in worker.edit_loop.publisher.timings[-1]["swap_error"]


def test_a_refused_version_is_retracted_and_its_edits_are_made_again(tmp_path, caplog):
    worker = make_worker(tmp_path)
    replicas_of(worker).faults = [Unloadable(1, ["r"], "bad file")]
    ids = post(worker, "a", "b")
    apply(worker)
    assert [state for state, _ in states(worker, ids)] == ["queued", "queued"] and worker.live_model.ledger.head == 0
    assert replicas_of(worker).served == [0]
    assert [line.version for line in logged(caplog, "version.retracted")] == [1]
    apply(worker)
    apply(worker)
    assert [state for state, _ in states(worker, ids)] == ["applied", "applied"]


def test_an_edit_whose_versions_are_always_refused_is_rejected(tmp_path):
    worker = make_worker(tmp_path)
    replicas_of(worker).faults = [fault for _ in range(MAX_ATTEMPTS) for fault in (Unloadable(1, ["r"], "bad file"), None)]
    (id,) = post(worker, "a")
    for _ in range(MAX_ATTEMPTS):
        apply(worker)
    assert worker.journal.get(id).state == "rejected" and "bad file" in worker.journal.get(id).reason


def test_a_version_that_is_refused_late_is_retracted_too(tmp_path, caplog):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    replicas_of(worker).faults = [SwapFailed(1, ["r"], "TimeoutError"), Unloadable(1, ["r"], "bad file")]
    apply(worker)
    assert states(worker, ids) == [("applied", 1)] * 2

    async def followed():
        with pytest.raises(Unloadable):
            await worker.edit_loop.publisher.served()
        await worker.edit_loop.publisher.served()

    asyncio.run(followed())
    assert [line.version for line in logged(caplog, "version.retracted")] == [1]
    assert (
        states(worker, ids) == [("queued", None)] * 2
        and worker.live_model.retracted == {1}
        and worker.live_model.ledger.head == 0
    )
    assert replicas_of(worker).served == [0] and worker.edit_loop._arrived.is_set()
    apply(worker)
    assert [state for state, _ in states(worker, ids)] == ["applied"] * 2 and len(worker.live_model.made) == 2


def test_a_revert_that_is_refused_late_leaves_its_edits_live(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker)
    replicas_of(worker).faults = [SwapFailed(2, ["r"], "TimeoutError"), Unloadable(2, ["r"], "bad file")]
    asyncio.run(worker.revert(ids[:1], [], "auto"))
    assert states(worker, ids) == [("reverted", 2), ("applied", 1)]
    published = []
    worker.edit_loop.waiters.publish = published.extend
    with pytest.raises(Unloadable):
        asyncio.run(worker.edit_loop.publisher.served())
    assert states(worker, ids) == [("applied", 1)] * 2 and worker.live_model.ledger.head == 1 and published == ids[:1]


def test_edits_are_queued_again_before_replicas_are_waited_for(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    refuse_next(worker, 1)
    swap, seen = replicas_of(worker).swap, []

    async def watched(version, epoch, attempts=5):
        seen.append((version.number, *states(worker, ids)[0]))
        await swap(version, epoch, attempts)

    replicas_of(worker).swap = watched
    with pytest.raises(Unloadable):
        asyncio.run(worker.edit_loop.publisher.served())
    assert seen == [(1, "applied", 1), (0, "queued", None)]


def test_the_last_post_counts_although_an_earlier_one_is_made_again_meanwhile(tmp_path):
    worker = make_worker(tmp_path)
    (old,) = post(worker, "p", target="old")
    apply(worker)
    (new,) = post(worker, "p", target="new")
    refuse_next(worker, 1)

    async def meanwhile():
        async with worker.edit_loop.writing:
            follower = asyncio.create_task(worker.edit_loop.publisher.served())
            await asyncio.sleep(0.01)  # It is the first to wait for the lock.
            loop = asyncio.create_task(worker.edit_loop._apply(worker.journal.take(10)))
            await asyncio.sleep(0.01)
        with pytest.raises(Unloadable):
            await follower
        await loop

    asyncio.run(meanwhile())
    assert states(worker, [old, new]) == [("queued", None)] * 2
    apply(worker)
    assert states(worker, [old, new]) == [("superseded", 2), ("applied", 2)]
    assert [[edit.target for edit in edits] for edits in worker.live_model.made] == [["old"], ["new"]]


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), LedgerDamaged("version 0 is damaged"), JournalFailed("cannot be written")]
)
def test_a_retraction_that_fails_is_repeated_until_it_succeeds(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(publish, "FOLLOW_PERIOD_S", 0.005)
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    refuse_next(worker, 1)
    owner, name = (worker.live_model, "retract")
    if isinstance(fault, JournalFailed):
        owner, name = (worker.journal, "reopen")
    else:
        replicas_of(worker).faults *= 4  # It stays the head and is refused until it is retracted.
    whole, faults, seen = getattr(owner, name), [fault] * 3, []

    def failing(*arguments):
        if faults:
            raise faults.pop()
        return whole(*arguments)

    monkeypatch.setattr(owner, name, failing)

    async def until_queued():
        following = asyncio.create_task(worker.edit_loop.publisher.follow())
        async with asyncio.timeout(5):
            while worker.journal.depth == 0 or worker.edit_loop.stalled:
                seen.append(worker.edit_loop.stalled)
                assert not following.done()
                await asyncio.sleep(0.001)
        following.cancel()

    asyncio.run(until_queued())
    assert f"{type(fault).__name__}: {fault}" in seen
    assert states(worker, ids) == [("queued", None)] and worker.live_model.ledger.head == 0
    apply(worker)
    assert [state for state, _ in states(worker, ids)] == ["applied"]


def test_edits_that_could_not_be_queued_again_come_before_later_edits(tmp_path, monkeypatch):
    worker = make_worker(tmp_path)
    (old,) = post(worker, "p", target="old")
    apply(worker)
    refuse_next(worker, 1)
    with monkeypatch.context() as disk:
        disk.setattr(worker.journal, "reopen", lambda version: (_ for _ in ()).throw(JournalFailed("cannot be written")))
        with pytest.raises(JournalFailed):
            asyncio.run(worker.edit_loop.publisher.served())
    (new,) = post(worker, "p", target="new")
    apply(worker)
    assert states(worker, [old, new]) == [("queued", None)] * 2
    apply(worker)
    assert states(worker, [old, new]) == [("superseded", 2), ("applied", 2)]


def test_a_head_that_was_chosen_by_rollback_is_not_retracted(tmp_path):
    worker = make_worker(tmp_path)
    post(worker, "a")
    apply(worker)
    worker.live_model.move_to(0)
    replicas_of(worker).is_behind, replicas_of(worker).faults = (
        True,
        [Unloadable(0, ["r"], "bad file")],
    )
    with pytest.raises(Unloadable):
        asyncio.run(worker.edit_loop.publisher.served())
    assert worker.live_model.ledger.head == 0 and not worker.live_model.retracted


def test_callers_that_wait_for_late_replicas_share_one_attempt(tmp_path):
    worker = make_worker(tmp_path)
    replicas_of(worker).is_behind = True

    async def wait():
        await asyncio.gather(*(worker.edit_loop.publisher.served() for _ in range(8)))

    asyncio.run(wait())
    assert replicas_of(worker).served == [0] and not replicas_of(worker).is_behind


def test_late_replicas_are_asked_again_beside_the_edit_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "FOLLOW_PERIOD_S", 0.005)
    worker = make_worker(tmp_path)
    replicas_of(worker).is_behind, replicas_of(worker).faults = (
        True,
        [SwapFailed(0, ["r"], "late"), SwapFailed(0, ["r"], "late")],
    )

    async def until_served():
        following = asyncio.create_task(worker.edit_loop.publisher.follow())
        async with asyncio.timeout(5):
            while replicas_of(worker).is_behind:
                await asyncio.sleep(0.005)
        following.cancel()

    asyncio.run(until_served())
    assert replicas_of(worker).served == [0] and not replicas_of(worker).faults
