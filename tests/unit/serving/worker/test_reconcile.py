"""Agreement of journal and ledger after a crash, a retraction or a version lost on disk."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from errata.ledger.quarantine import QuarantinedVersion
from serving.worker.edit_worker import EditWorker
from serving.worker.journal import Journal, JournalFailed
from serving.worker.replicas import Unloadable
from tests.fakes.edit_worker import InMemoryReplicas, apply, logged, make_worker, post, replicas_of, states


def quarantine(worker: EditWorker, number: int, fault: str, was_live: bool) -> None:
    """Make the ledger report a version as quarantined."""
    found = QuarantinedVersion(number, (fault,), (), Path(), was_live=was_live)
    worker.live_model.ledger.quarantined = lambda: [found]


def test_edits_of_a_retracted_version_are_made_again_after_a_crash(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    worker.live_model.retract(1, 0)  # Then the worker dies.
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("queued", None)]
    apply(worker)
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("applied", 2)]


def test_edits_of_a_version_lost_on_disk_are_made_again(tmp_path, caplog):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker, 1)
    apply(worker, 1)
    worker.live_model.made.pop()
    worker.live_model.version = worker.live_model.ledger.head = 1
    quarantine(worker, 2, "delta.safetensors is torn", was_live=True)
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("applied", 1), ("queued", None)]
    [line] = logged(caplog, "version.quarantined")
    assert (line.version, line.num_edits, line.error) == (2, 1, ["delta.safetensors is torn"])
    apply(worker)
    assert states(worker, ids) == [("applied", 1), ("applied", 2)]


def test_edits_that_a_lost_version_reverted_are_live_again(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    asyncio.run(worker.revert(ids, [], "auto"))
    worker.live_model.made.pop()
    worker.live_model.version = worker.live_model.ledger.head = 1
    quarantine(worker, 2, "its folder is missing", was_live=True)
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("applied", 1)]


def test_edits_of_a_lost_version_that_was_not_live_stay_out(tmp_path, caplog):
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    asyncio.run(worker.rollback(0))
    quarantine(worker, 1, "it is torn", was_live=False)
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("applied", 1)] and worker.journal.depth == 0
    assert not logged(caplog, "version.quarantined")


def test_a_retracted_version_does_not_count_as_made_after_a_restart(tmp_path):
    worker = make_worker(tmp_path)
    replicas_of(worker).faults = [Unloadable(1, ["r"], "bad file")]
    ids = post(worker, "a")
    apply(worker)
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("queued", None)]
    apply(worker)
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("applied", 2)] and worker.live_model.ledger.head == 2


def test_a_revert_that_was_appended_before_the_crash_is_marked_at_start(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    worker.live_model.append(worker.live_model.revert(ids, [], "auto"))  # Then the worker dies.
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("reverted", 2)]


# -- after a restore --------------------------------------------------------------------------------------------------


def without_journal(worker: EditWorker, folder: Path) -> EditWorker:
    """Make a worker over the same ledger with an empty journal."""
    folder.mkdir()
    return EditWorker(worker.live_model, Journal(folder / "journal"), worker.mirror, worker.options, InMemoryReplicas())


def test_edits_that_only_the_ledger_has_are_known_after_the_start(tmp_path):
    worker = make_worker(tmp_path)
    edits = [{"prompt": prompt, "target": "x"} for prompt in "abc"]
    ids = worker.journal.submit(edits, poster="ada")
    apply(worker)
    asyncio.run(worker.revert(ids[:1], [], "auto"))
    restored = without_journal(worker, tmp_path / "restored")
    restored.edit_loop.reconciler.reconcile()
    assert states(restored, ids) == [("reverted", 2), ("applied", 1), ("applied", 1)]
    assert asyncio.run(restored.edit_status(ids[1]))["edit"]["prompt"] == "b"
    assert restored.journal.get(ids[1]).poster == "ada" and restored.journal.depth == 0
    assert asyncio.run(restored.revert(ids[1:2], [], "auto"))["reverted"] == ids[1:2]
    restored.edit_loop.reconciler.reconcile()
    assert states(restored, ids) == [("reverted", 2), ("reverted", 3), ("applied", 1)]


def test_edits_of_retracted_versions_are_not_taken_from_the_ledger(tmp_path):
    worker = make_worker(tmp_path)
    post(worker, "a")
    apply(worker)
    worker.live_model.retract(1, 0)
    restored = without_journal(worker, tmp_path / "restored")
    restored.edit_loop.reconciler.reconcile()
    assert restored.journal.newest(9) == []


def test_edits_of_versions_that_the_copy_of_the_ledger_lacks_are_made_again(tmp_path, caplog):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b", "c")
    apply(worker, 1)
    apply(worker, 1)
    apply(worker, 1)
    asyncio.run(worker.revert(ids[2:], [], "auto"))  # Version 4.
    for number in (2, 3, 4):  # The ledger is restored as it was a moment before the journal.
        worker.live_model.contents.pop(number)
    worker.live_model.made = worker.live_model.made[:1]
    worker.live_model.version = worker.live_model.ledger.head = 1
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("applied", 1), ("queued", None), ("reverted", 4)]
    [line] = logged(caplog, "edit.made_again")
    assert (line.version, line.num_edits) == (2, 1)
    apply(worker)
    assert states(worker, ids)[1] == ("applied", 2)


def test_a_superseded_edit_is_not_made_after_a_crash_between_append_and_settlement(tmp_path):
    worker = make_worker(tmp_path)
    ids = [id for target in ("dog", "cat") for id in post(worker, "p", target=target)]
    worker.journal.finish = lambda *_, **__: (_ for _ in ()).throw(JournalFailed("the worker dies"))
    with pytest.raises(JournalFailed):
        apply(worker)
    del worker.journal.finish
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("superseded", 1), ("applied", 1)] and worker.journal.depth == 0
    assert worker.journal.get(ids[0]).reason.endswith("gives this prompt another target; the later one counts")


def test_an_edit_is_superseded_in_the_transaction_that_settles_the_later_one(tmp_path):
    worker = make_worker(tmp_path)
    for said in ({}, {"p": "cat"}):
        worker.live_model.said = said
        ids = [id for target in ("dog", "cat") for id in post(worker, "p", target=target)]
        transactions = []
        worker.journal._connection.set_trace_callback(transactions.append)
        apply(worker)
        worker.journal._connection.set_trace_callback(None)
        assert [text.split()[0] for text in transactions[-4:]] == ["BEGIN", "UPDATE", "UPDATE", "COMMIT"]
        assert [state for state, _ in states(worker, ids)] == ["superseded", "applied"]


def test_edits_that_a_lost_version_superseded_are_queued_again(tmp_path):
    worker = make_worker(tmp_path)
    ids = [id for target in ("dog", "cat") for id in post(worker, "p", target=target)]
    apply(worker)
    worker.live_model.retract(1, 0)
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("queued", None)] * 2 and worker.journal.get(ids[0]).reason is None


def failing_once(worker: EditWorker) -> None:
    """Make the journal fail the next time that it marks reverted edits."""
    mark = worker.journal.mark_reverted

    def fail(*_):
        worker.journal.mark_reverted = mark
        raise JournalFailed("disk I/O error")

    worker.journal.mark_reverted = fail


def test_a_revert_that_is_made_is_answered_by_its_version_although_the_journal_fails(tmp_path, caplog):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker)
    failing_once(worker)
    assert asyncio.run(worker.revert(ids[:1], [], "auto"))["version"] == 2
    assert states(worker, ids) == [("applied", 1)] * 2 and logged(caplog, "edits.stalled")
    heard = []
    worker.edit_loop.waiters.publish = heard.extend
    asyncio.run(worker.edit_loop.publisher.served())
    assert states(worker, ids) == [("reverted", 2), ("applied", 1)] and heard == ids[:1]


def test_a_rollback_that_is_made_is_answered_although_the_journal_fails(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    asyncio.run(worker.revert(ids, [], "auto"))
    failing_once(worker)
    assert asyncio.run(worker.rollback(1))["version"] == 1
    asyncio.run(worker.edit_loop.publisher.served())
    assert states(worker, ids) == [("applied", 1)]


def test_a_revert_is_marked_at_start_although_later_versions_follow_it(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    apply(worker)
    worker.live_model.append(worker.live_model.revert(ids, [], "auto"))
    post(worker, "b")
    apply(worker)
    assert worker.live_model.ledger.head == 3
    worker.edit_loop.reconciler.reconcile()
    assert states(worker, ids) == [("reverted", 2)]


def test_a_rollback_over_a_revert_of_many_edits_is_one_transaction_beside_the_loop(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, *map(str, range(50)))
    apply(worker)
    asyncio.run(worker.revert(ids, [], "auto"))
    commits, threads, heard = [], set(), []
    worker.journal._connection.set_trace_callback(lambda text: text == "COMMIT" and commits.append(text))
    mark, worker.edit_loop.waiters.publish = worker.journal.mark_reverted, heard.extend
    worker.journal.mark_reverted = lambda *changes: threads.add(threading.current_thread()) or mark(*changes)
    asyncio.run(worker.rollback(1))
    assert len(commits) == 1 and threading.main_thread() not in threads and sorted(heard) == sorted(ids)
    assert set(states(worker, ids)) == {("applied", 1)}
