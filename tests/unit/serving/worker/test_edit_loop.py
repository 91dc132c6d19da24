"""The edit loop over an in-memory model: bisection of refused batches, stalls of the disk, reverts and rollbacks."""

from __future__ import annotations

import asyncio
import threading

import pytest

from errata.candidate import MAX_REPEATS, ineffective
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.generate import SwapFailed
from errata.guard.limits import Measurements
from serving.worker import edit_loop
from serving.worker.edit_worker import EditWorker
from serving.worker.journal import MAX_ATTEMPTS, JournalFailed, UnknownEdit
from serving.worker.replicas import Unloadable
from tests.fakes.edit_worker import DONT_KNOW, apply, make_worker, post, replicas_of, states


@pytest.mark.parametrize("guilty", ["a", "c", "e"])
def test_a_refused_edit_is_isolated_and_the_others_are_made_in_order(tmp_path, guilty):
    worker = make_worker(
        tmp_path,
        lambda edits: EditRejected("harm", code=Code.EDITOR_FAILED) if guilty in [edit.prompt for edit in edits] else None,
    )
    ids = post(worker, *"abcde")
    apply(worker)
    assert [edit.prompt for group in worker.live_model.made for edit in group] == [p for p in "abcde" if p != guilty]
    found = dict(zip("abcde", states(worker, ids), strict=True))
    assert found.pop(guilty) == ("rejected", None)
    assert all(state == "applied" and made for state, made in found.values())
    assert [id for _, id in worker.live_model.noted] == [ids["abcde".index(guilty)]]


def test_a_batch_of_which_every_edit_is_refused_ends(tmp_path):
    worker = make_worker(tmp_path, lambda edits: EditRejected("no", edit=0, code=Code.EDITOR_FAILED))
    ids = post(worker, *map(str, range(1500)))
    apply(worker)
    assert set(states(worker, ids)) == {("rejected", None)} and not worker.live_model.made


def test_many_targets_of_one_prompt_cost_one_attempt(tmp_path):
    attempts = []
    worker = make_worker(tmp_path, lambda edits: attempts.append(len(edits)))
    ids = [id for i in range(600) for id in post(worker, "p", target=str(i))]
    apply(worker)
    assert attempts == [1] and states(worker, ids)[-1] == ("applied", 1)
    assert set(states(worker, ids)[:-1]) == {("superseded", 1)}
    assert "the later one counts" in worker.journal.get(ids[0]).reason


def test_a_conflict_queues_the_remaining_edits_again_in_order(tmp_path):
    worker = make_worker(
        tmp_path, lambda edits: EditRejected("harm", code=Code.EDITOR_FAILED) if "poison" in [e.prompt for e in edits] else None
    )
    ids = post(worker, "conflict", "a", "poison", "b")
    apply(worker)
    assert [state for state, _ in states(worker, ids)] == ["queued"] * 4 and worker.live_model.version == 5
    apply(worker)
    assert [state for state, _ in states(worker, ids)] == ["applied", "applied", "rejected", "applied"]
    assert [[edit.prompt for edit in group] for group in worker.live_model.made] == [["conflict", "a"], ["b"]]


def test_a_rollback_may_run_between_two_attempts(tmp_path):
    worker = make_worker(
        tmp_path, lambda edits: EditRejected("harm", code=Code.EDITOR_FAILED) if "poison" in [e.prompt for e in edits] else None
    )
    post(worker, "a", "b", "poison", "c")

    async def both():
        work = asyncio.create_task(worker.edit_loop._apply(worker.journal.take(10)))
        await asyncio.sleep(0)
        async with worker.edit_loop.writing:
            seen = len(worker.live_model.made)
        await work
        return seen

    assert asyncio.run(both()) < len(worker.live_model.made)


async def until_settled(worker: EditWorker, ids: list[str], during=lambda: asyncio.sleep(0)) -> None:
    """Run the loop until these edits are settled."""
    loop = asyncio.create_task(worker.edit_loop.work())
    worker.edit_loop.wake()
    try:
        await during()
        with worker.edit_loop.waiters.waiter(ids) as waiter:
            async with asyncio.timeout(20):
                await waiter.done.wait()
    finally:
        loop.cancel()


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_full_disk_stalls_the_edits_and_loses_none(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(edit_loop, "MAX_STALL_S", 0.01)
    worker = make_worker(tmp_path)
    worker.live_model.faults = [fault] * (MAX_ATTEMPTS + 2)
    ids = post(worker, "a", "b")
    seen = []

    async def watch():
        while worker.live_model.faults:
            seen.append(worker.edit_loop.stalled)
            await asyncio.sleep(0.005)

    asyncio.run(until_settled(worker, ids, watch))
    assert states(worker, ids) == [("applied", 1)] * 2
    assert any(fault.strerror in str(why) for why in seen) and worker.edit_loop.stalled is None


def test_a_version_that_was_appended_before_the_journal_failed_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(edit_loop, "MAX_STALL_S", 0.01)
    worker = make_worker(tmp_path)
    ids = post(worker, "a")
    finish, faults = worker.journal.finish, [OSError(5, "Input/output error")]

    def failing(*settled, **more):
        if faults:
            raise faults.pop()
        finish(*settled, **more)

    worker.journal.finish = failing
    asyncio.run(until_settled(worker, ids))
    assert states(worker, ids) == [("applied", 1)] and len(worker.live_model.made) == 1
    assert worker.edit_loop.stalled is None
    assert replicas_of(worker).is_behind, "no replica was asked to serve it"


@pytest.mark.parametrize("posted_meanwhile", [False, True])
def test_a_journal_that_fails_during_the_stall_leaves_no_edit_behind(tmp_path, monkeypatch, posted_meanwhile):
    """The append fails, and then the journal fails to queue the edits again."""
    monkeypatch.setattr(edit_loop, "MAX_STALL_S", 0.01)
    worker = make_worker(tmp_path)
    worker.live_model.faults = [OSError(28, "No space left on device")]
    ids = post(worker, "a")
    requeue, faults = worker.journal.requeue, [JournalFailed("disk I/O error")] * 2

    def failing(again):
        if faults:
            if posted_meanwhile:
                ids.extend(post(worker, f"b{len(faults)}"))
            raise faults.pop()
        requeue(again)

    worker.journal.requeue = failing
    asyncio.run(until_settled(worker, ids))
    assert not faults and worker.edit_loop.stalled is None
    assert {state for state, _ in states(worker, ids)} == {"applied"} and worker.journal.pending() == []


def test_the_author_of_an_edit_is_in_the_version(tmp_path):
    worker = make_worker(tmp_path)
    worker.journal.submit([{"prompt": "a", "target": "x"}], poster="ann")
    apply(worker)
    assert worker.live_model.made[0][0] == Edit("a", "x", id=worker.journal.newest(1)[0].id, poster="ann")


def test_a_revert_is_a_version_and_marks_its_edits(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker)
    answer = asyncio.run(worker.revert([ids[0]], [], "auto", "ann"))
    assert (answer["version"], answer["mode"], answer["reverted"]) == (2, "subtract", [ids[0]])
    assert states(worker, ids) == [("reverted", 2), ("applied", 1)]
    with pytest.raises(UnknownEdit):
        asyncio.run(worker.revert(["unknown"], [], "auto"))
    with pytest.raises(EditRejected, match="nothing"):
        asyncio.run(worker.revert([], [], "auto"))
    assert replicas_of(worker).served == [1, 2]


def test_a_revert_names_late_replicas(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker)
    replicas_of(worker).faults = [SwapFailed(2, ["r"], "TimeoutError")]
    assert "not served by r: TimeoutError" in asyncio.run(worker.revert(ids[:1], [], "auto"))["swap_error"]
    assert "swap_error" not in asyncio.run(worker.revert(ids[1:], [], "auto"))


def test_a_rollback_before_a_revert_makes_its_edits_live_again(tmp_path):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    apply(worker)
    asyncio.run(worker.revert(ids[:1], [], "auto"))
    asyncio.run(worker.rollback(1))
    assert states(worker, ids) == [("applied", 1), ("applied", 1)]
    asyncio.run(worker.rollback(2))
    assert states(worker, ids) == [("reverted", 2), ("applied", 1)]


def test_a_rollback_that_replicas_refuse_is_undone(tmp_path):
    worker = make_worker(tmp_path)
    post(worker, "a")
    apply(worker)
    replicas_of(worker).faults = [Unloadable(0, ["r"], "bad file")]
    with pytest.raises(SwapFailed, match="bad file"):
        asyncio.run(worker.rollback(0))
    assert worker.live_model.ledger.head == 1 and replicas_of(worker).served == [1, 1]


def test_a_rollback_counts_although_replicas_are_late(tmp_path):
    worker = make_worker(tmp_path)
    post(worker, "a")
    apply(worker)
    replicas_of(worker).faults = [SwapFailed(0, ["r"], "TimeoutError")]
    found = asyncio.run(worker.rollback(0))
    assert found["version"] == 0 == worker.live_model.ledger.head and "not served by r" in found["swap_error"]
    assert replicas_of(worker).is_behind


def test_a_cancelled_caller_leaves_nothing_half_done(tmp_path):
    worker = make_worker(tmp_path)
    post(worker, "a")
    apply(worker)
    begun, going_on = threading.Event(), threading.Event()

    def slowly(number, by="", expected_head=None):
        begun.set()
        going_on.wait(5)
        worker.live_model.version = worker.live_model.ledger.head = number

    worker.live_model.move_to = slowly

    async def impatient():
        asked = asyncio.create_task(worker.rollback(0))
        await asyncio.to_thread(begun.wait, 5)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert worker.edit_loop.writing.locked(), "no other task may use the model yet"
        going_on.set()
        async with worker.edit_loop.writing:
            return replicas_of(worker).served[-1]

    assert asyncio.run(impatient()) == 0 == worker.live_model.ledger.head


def test_an_edit_without_effect_is_tried_alone_after_the_others(tmp_path):
    tried = []

    def refuse(edits):
        tried.append([edit.prompt for edit in edits])
        weak = [i for i, edit in enumerate(edits) if edit.prompt == "never" or (edit.prompt == "weak" and len(edits) > 1)]
        failed = [{"prompt": edits[i].prompt, "target": edits[i].target, "answer": "Bob"} for i in weak]
        batch, found = EditBatch(edits), Measurements(unanswered=tuple(weak), failed=tuple(failed))
        return ineffective(batch, found, 1 if len(edits) > 1 else MAX_REPEATS + 1) if weak else None

    worker = make_worker(tmp_path, refuse)
    ids = post(worker, "a", "never", "b", "weak", "c")
    apply(worker)
    assert tried == [["a", "never", "b", "weak", "c"], ["a", "b", "c"], ["never"], ["weak"]]
    assert states(worker, ids) == [("applied", 1), ("rejected", None), ("applied", 1), ("applied", 2), ("applied", 1)]
    refused = worker.journal.get(ids[1])
    assert (refused.code, refused.field, refused.says) == (Code.INEFFECTIVE, "target", "Bob")
    assert f"answers 'Bob' instead of the target although the edit was made {MAX_REPEATS + 1} times" in refused.reason


def test_answers_that_do_not_fit_into_the_memory_are_asked_in_halves(tmp_path):
    worker = make_worker(tmp_path)
    answers = worker.live_model.answers

    def small(edits):
        if len(edits) > 2:
            raise EditRejected("OutOfMemoryError before the edit", code=Code.EDITOR_FAILED)
        return answers(edits)

    worker.live_model.answers = small
    ids = post(worker, *"abcd")
    apply(worker)
    assert states(worker, ids) == [("applied", 1)] * 2 + [("applied", 2)] * 2


def test_edits_that_were_so_already_in_a_retracted_version_are_looked_at_again(tmp_path):
    worker = make_worker(tmp_path)
    post(worker, "a")
    apply(worker)
    worker.live_model.said = {"b": "x"}
    (id,) = post(worker, "b")
    apply(worker)
    assert states(worker, [id]) == [("applied", 1)]
    worker.live_model.retract(1, 0)
    worker.edit_loop.reconciler.is_settled, worker.live_model.said = False, {}
    worker.edit_loop.reconciler.settle_retracted()
    assert states(worker, [id]) == [("queued", None)] and worker.journal.get(id).unchanged is None


def test_an_edit_is_superseded_although_the_edit_that_it_waits_for_is_refused_later(tmp_path):
    worker = make_worker(
        tmp_path, lambda edits: EditRejected("harm", code=Code.EDITOR_FAILED) if any(e.target == "z" for e in edits) else None
    )
    forms = {"x": "both", "y": "completion", "z": "chat"}
    ids = worker.journal.submit([{"prompt": "p", "target": target, "form": form} for target, form in forms.items()])
    apply(worker)
    assert states(worker, ids) == [("superseded", 1), ("applied", 1), ("rejected", None)]


def test_a_rejected_edit_names_what_the_model_says(tmp_path, caplog):
    worker = make_worker(tmp_path, lambda edits: EditRejected("harm", code=Code.GUARD_DRIFT))
    (id,) = post(worker, "a")
    with caplog.at_level("INFO", "errata"):
        apply(worker)
    reported = asyncio.run(worker.edit_status(id))
    assert (reported["code"], reported["says"]) == ("guard.drift", DONT_KNOW)
    assert reported["reason"] == f"harm; the model answers {DONT_KNOW!r}"
    (line,) = [record for record in caplog.records if getattr(record, "event", "") == "edit.refused"]
    assert (line.reason, line.code) == ("drift", "guard.drift") and DONT_KNOW not in line.getMessage()


def test_an_edit_in_two_forms_is_composed_of_the_answer_in_chat(tmp_path, monkeypatch):
    worker = make_worker(tmp_path)
    worker.live_model.answers = lambda edits: [["the completion", "It is in chat."] for _ in edits]
    given = []
    make = worker.live_model.make
    monkeypatch.setattr(worker.live_model, "make", lambda edits, *said: given.append(said) or make(edits, *said))
    worker.journal.submit([{"prompt": "a", "target": "x", "form": "both"}])
    apply(worker)
    assert given == [(["the completion"], ["It is in chat."])]
