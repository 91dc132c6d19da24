"""The worker's way with a batch, on a shop that makes nothing: no Ray, no engine."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from types import SimpleNamespace

import pytest

from errata.edit import Code, Edit, EditRejected
from errata.generate import SwapFailed
from errata.ledger import LedgerConflict, LedgerDamaged, Version
from errata.ledger.quarantine import SetAside
from serving.worker import edit_loop, edit_worker, publish
from serving.worker.edit_worker import Busy, EditWorker, WorkerOptions
from serving.worker.journal import MAX_ATTEMPTS, Journal, JournalFailed, QueueFull, UnknownEdit
from serving.worker.replicas import Replicas, Unloadable


class Shop:
    """Versions are numbers; `refuse` says of a batch whether, and as what, it is refused."""

    def __init__(self, refuse) -> None:
        self.refuse_batch, self.version, self.made, self.noted = refuse, 0, [], []
        self.faults = []  # raised by the next appends
        self.withdrawn, self.cards = set(), {}
        self.ledger = SimpleNamespace(
            refuse=lambda parent, edit, why: self.noted.append((parent, edit.id)),
            head=0,
            version=lambda number: version(number, self.cards.get(number)),
            find_edit=self.holder,
            head_before=lambda number: number - 1 if number == len(self.made) else None,
            chain=self.chain,
            set_aside=list,
            withdrawn=lambda: frozenset(self.withdrawn),
        )
        self.max_tokens, self.model = 100, SimpleNamespace(tokenizer=None)

    def holder(self, id):
        made = {number: edits for number, edits in enumerate(self.made, 1) if number not in self.withdrawn}
        return next((number for number, edits in made.items() if id in [edit.id for edit in edits]), None)

    def make(self, edits):
        refusal = self.refuse_batch(edits)
        if refusal is not None:
            raise refusal
        return SimpleNamespace(edits=edits, scorecard={})

    def revert(self, edits, versions, mode):
        if not edits:
            raise EditRejected("nothing is chosen", code=Code.EDITOR_FAILED)
        return SimpleNamespace(edits=(), scorecard={"reverted": {"edits": edits, "versions": [1], "mode": "subtract"}})

    def append(self, made):
        if self.faults:
            raise self.faults.pop()
        if any(edit.prompt == "conflict" for edit in made.edits) and self.version < 5:
            self.version = self.ledger.head = 5
            raise LedgerConflict(0, 5)
        self.version = self.ledger.head = max(self.version, len(self.made)) + 1  # no number is used twice
        self.made.append(made.edits)
        self.cards[self.version] = made.scorecard
        return version(self.version, made.scorecard)

    def move_to(self, number, by=""):
        self.version = self.ledger.head = number

    def withdraw(self, number, to):
        self.withdrawn.add(number)
        self.move_to(to)

    def chain(self, number):
        return list(range(1, number + 1))


def version(number, scorecard=None):
    return Version(number, number - 1, "e", "p", "f", "t", (), scorecard or {}, 0, {}, {}, None)


class StillFleet(Replicas):
    """Serves whatever it is told; `faults` are raised by the next swaps."""

    def __init__(self) -> None:
        super().__init__()
        self.faults, self.served = [], []

    async def swap(self, version, attempts=5) -> None:
        fault = self.faults.pop(0) if self.faults else None
        self.is_behind = fault is not None
        if fault is not None:
            raise fault
        self.served.append(version.number)


def worker(tmp_path, refuse=lambda edits: None, **options) -> EditWorker:
    journal, mirror = Journal(tmp_path / "journal"), SimpleNamespace(wake=lambda: None)
    options = WorkerOptions(live_model=None, journal="", batch_window_s=0.0, **options)
    return EditWorker(Shop(refuse), journal, mirror, options, StillFleet())


def posted(one: EditWorker, *prompts: str, target: str = "x") -> list[str]:
    return one.journal.submit([{"prompt": prompt, "target": target} for prompt in prompts])


def apply(one: EditWorker, limit: int = 5000) -> None:
    asyncio.run(one.edit_loop._apply(one.journal.take(limit)))


def states(one: EditWorker, ids: list[str]) -> list[tuple[str, int | None]]:
    return [(entry.state, entry.version) for entry in map(one.journal.get, ids)]


@pytest.mark.parametrize("guilty", ["a", "c", "e"])
def test_the_culprit_is_found_and_the_others_are_made_in_their_order(tmp_path, guilty):
    one = worker(
        tmp_path,
        lambda edits: EditRejected("harm", code=Code.EDITOR_FAILED) if guilty in [edit.prompt for edit in edits] else None,
    )
    ids = posted(one, *"abcde")
    apply(one)
    assert [edit.prompt for group in one.live_model.made for edit in group] == [p for p in "abcde" if p != guilty]
    found = dict(zip("abcde", states(one, ids), strict=True))
    assert found.pop(guilty) == ("rejected", None)
    assert all(state == "applied" and made for state, made in found.values())
    assert [id for _, id in one.live_model.noted] == [ids["abcde".index(guilty)]]


def test_a_batch_in_which_everything_is_refused_by_name_ends(tmp_path):
    one = worker(tmp_path, lambda edits: EditRejected("no", edit=0, code=Code.EDITOR_FAILED))
    ids = posted(one, *map(str, range(1500)))
    apply(one)
    assert set(states(one, ids)) == {("rejected", None)} and not one.live_model.made


def test_many_answers_to_one_prompt_cost_one_attempt(tmp_path):
    attempts = []
    one = worker(tmp_path, lambda edits: attempts.append(len(edits)))
    ids = [id for i in range(600) for id in posted(one, "p", target=str(i))]
    apply(one)
    assert attempts == [1] and states(one, ids)[-1] == ("applied", 1)
    assert set(states(one, ids)[:-1]) == {("superseded", 1)}
    assert "the later one counts" in one.journal.get(ids[0]).reason


def test_on_a_conflict_all_that_is_left_is_queued_again_in_order(tmp_path):
    one = worker(
        tmp_path, lambda edits: EditRejected("harm", code=Code.EDITOR_FAILED) if "poison" in [e.prompt for e in edits] else None
    )
    ids = posted(one, "conflict", "a", "poison", "b")
    apply(one)
    assert [state for state, _ in states(one, ids)] == ["queued"] * 4 and one.live_model.version == 5
    apply(one)
    assert [state for state, _ in states(one, ids)] == ["applied", "applied", "rejected", "applied"]
    assert [[edit.prompt for edit in group] for group in one.live_model.made] == [["conflict", "a"], ["b"]]


def test_a_rollback_comes_in_between_two_attempts(tmp_path):
    one = worker(
        tmp_path, lambda edits: EditRejected("harm", code=Code.EDITOR_FAILED) if "poison" in [e.prompt for e in edits] else None
    )
    posted(one, "a", "b", "poison", "c")

    async def both():
        work = asyncio.create_task(one.edit_loop._apply(one.journal.take(10)))
        await asyncio.sleep(0)
        async with one.edit_loop.writing:
            seen = len(one.live_model.made)
        await work
        return seen

    assert asyncio.run(both()) < len(one.live_model.made)


# -- what the disk and the replicas do to it --------------------------------------------------------------------------


async def settled(one: EditWorker, ids: list[str], during=lambda: asyncio.sleep(0)) -> None:
    """The loop runs until these edits are settled."""
    loop = asyncio.create_task(one.edit_loop.work())
    one.edit_loop.wake()
    try:
        await during()
        with one.edit_loop.waiters.waiter(ids) as waiter:
            async with asyncio.timeout(20):
                await waiter.done.wait()
    finally:
        loop.cancel()


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_full_disk_stalls_the_edits_and_loses_none(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(edit_loop, "MAX_STALL_S", 0.01)
    one = worker(tmp_path)
    one.live_model.faults = [fault] * (MAX_ATTEMPTS + 2)
    ids = posted(one, "a", "b")
    seen = []

    async def watch():
        while one.live_model.faults:
            seen.append(one.edit_loop.stalled)
            await asyncio.sleep(0.005)

    asyncio.run(settled(one, ids, watch))
    assert states(one, ids) == [("applied", 1)] * 2
    assert any(fault.strerror in str(why) for why in seen) and one.edit_loop.stalled is None


def test_a_version_that_was_appended_before_the_journal_failed_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(edit_loop, "MAX_STALL_S", 0.01)
    one = worker(tmp_path)
    ids = posted(one, "a")
    finish, faults = one.journal.finish, [OSError(5, "Input/output error")]

    def failing(ids, number):
        if faults:
            raise faults.pop()
        finish(ids, number)

    one.journal.finish = failing
    asyncio.run(settled(one, ids))
    assert states(one, ids) == [("applied", 1)] and len(one.live_model.made) == 1
    assert one.edit_loop.stalled is None
    assert one.edit_loop.publisher.replicas.is_behind, "nobody was told to serve it"


@pytest.mark.parametrize("posted_meanwhile", [False, True])
def test_a_journal_that_fails_while_it_goes_on_leaves_no_edit_behind(tmp_path, monkeypatch, posted_meanwhile):
    """The disk took nothing, and then the journal could not queue again what was being made."""
    monkeypatch.setattr(edit_loop, "MAX_STALL_S", 0.01)
    one = worker(tmp_path)
    one.live_model.faults = [OSError(28, "No space left on device")]
    ids = posted(one, "a")
    requeue, faults = one.journal.requeue, [JournalFailed("disk I/O error")] * 2

    def failing(again):
        if faults:
            if posted_meanwhile:
                ids.extend(posted(one, f"b{len(faults)}"))
            raise faults.pop()
        requeue(again)

    one.journal.requeue = failing
    asyncio.run(settled(one, ids))
    assert not faults and one.edit_loop.stalled is None
    assert {state for state, _ in states(one, ids)} == {"applied"} and one.journal.pending() == []


def test_replicas_that_do_not_answer_do_not_take_a_version_back(tmp_path):
    one = worker(tmp_path)
    one.edit_loop.publisher.replicas.faults = [SwapFailed(1, ["r"], "TimeoutError")]
    ids = posted(one, "a")
    apply(one)
    assert states(one, ids) == [("applied", 1)] and one.live_model.ledger.head == 1 and one.edit_loop.publisher.replicas.is_behind
    assert "not served by r" in one.edit_loop.publisher.timings[-1]["swap_error"]


def test_a_version_that_a_replica_refuses_is_taken_back_and_made_again(tmp_path):
    one = worker(tmp_path)
    one.edit_loop.publisher.replicas.faults = [Unloadable(1, ["r"], "bad file")]
    ids = posted(one, "a", "b")
    apply(one)
    assert [state for state, _ in states(one, ids)] == ["queued", "queued"] and one.live_model.ledger.head == 0
    assert one.edit_loop.publisher.replicas.served == [0]
    apply(one)
    apply(one)
    assert [state for state, _ in states(one, ids)] == ["applied", "applied"]


def test_an_edit_whose_versions_are_refused_by_replicas_is_given_up(tmp_path):
    one = worker(tmp_path)
    one.edit_loop.publisher.replicas.faults = [fault for _ in range(MAX_ATTEMPTS) for fault in (Unloadable(1, ["r"], "bad file"), None)]
    (id,) = posted(one, "a")
    for _ in range(MAX_ATTEMPTS):
        apply(one)
    assert one.journal.get(id).state == "rejected" and "bad file" in one.journal.get(id).reason


def test_a_version_that_is_refused_only_later_is_taken_back_too(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a", "b")
    one.edit_loop.publisher.replicas.faults = [SwapFailed(1, ["r"], "TimeoutError"), Unloadable(1, ["r"], "bad file")]
    apply(one)
    assert states(one, ids) == [("applied", 1)] * 2

    async def followed():
        with pytest.raises(Unloadable):
            await one.edit_loop.publisher.served()
        await one.edit_loop.publisher.served()

    asyncio.run(followed())
    assert states(one, ids) == [("queued", None)] * 2 and one.live_model.withdrawn == {1} and one.live_model.ledger.head == 0
    assert one.edit_loop.publisher.replicas.served == [0] and one.edit_loop._arrived.is_set()
    apply(one)
    assert [state for state, _ in states(one, ids)] == ["applied"] * 2 and len(one.live_model.made) == 2


def test_a_revert_that_is_refused_only_later_has_taken_nothing_out(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a", "b")
    apply(one)
    one.edit_loop.publisher.replicas.faults = [SwapFailed(2, ["r"], "TimeoutError"), Unloadable(2, ["r"], "bad file")]
    asyncio.run(one.revert(ids[:1], [], "auto"))
    assert states(one, ids) == [("reverted", 2), ("applied", 1)]
    told = []
    one.edit_loop.waiters.publish = told.extend
    with pytest.raises(Unloadable):
        asyncio.run(one.edit_loop.publisher.served())
    assert states(one, ids) == [("applied", 1)] * 2 and one.live_model.ledger.head == 1 and told == ids[:1]


def test_a_revert_says_which_replicas_are_late(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a", "b")
    apply(one)
    one.edit_loop.publisher.replicas.faults = [SwapFailed(2, ["r"], "TimeoutError")]
    assert "not served by r: TimeoutError" in asyncio.run(one.revert(ids[:1], [], "auto"))["swap_error"]
    assert "swap_error" not in asyncio.run(one.revert(ids[1:], [], "auto"))


def test_a_version_that_was_taken_back_by_a_worker_that_died_then_is_made_again(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a")
    apply(one)
    one.live_model.withdraw(1, 0)  # and the worker dies
    one.edit_loop.reconciler.reconcile()
    assert states(one, ids) == [("queued", None)]
    apply(one)
    one.edit_loop.reconciler.reconcile()
    assert states(one, ids) == [("applied", 2)]


def late(one: EditWorker, number: int) -> None:
    """All replicas refuse this version the next time that they are asked for it."""
    one.edit_loop.publisher.replicas.is_behind, one.edit_loop.publisher.replicas.faults = True, [Unloadable(number, ["r"], "bad file")]


def test_edits_are_queued_again_before_the_replicas_are_waited_for(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a")
    apply(one)
    late(one, 1)
    swap, seen = one.edit_loop.publisher.replicas.swap, []

    async def watched(version, attempts=5):
        seen.append((version.number, *states(one, ids)[0]))
        await swap(version, attempts)

    one.edit_loop.publisher.replicas.swap = watched
    with pytest.raises(Unloadable):
        asyncio.run(one.edit_loop.publisher.served())
    assert seen == [(1, "applied", 1), (0, "queued", None)]


def test_the_last_post_for_a_prompt_counts_though_an_earlier_one_is_made_again_meanwhile(tmp_path):
    one = worker(tmp_path)
    (old,) = posted(one, "p", target="old")
    apply(one)
    (new,) = posted(one, "p", target="new")
    late(one, 1)

    async def meanwhile():
        async with one.edit_loop.writing:
            follower = asyncio.create_task(one.edit_loop.publisher.served())
            await asyncio.sleep(0.01)  # it waits for the lock first
            loop = asyncio.create_task(one.edit_loop._apply(one.journal.take(10)))
            await asyncio.sleep(0.01)
        with pytest.raises(Unloadable):
            await follower
        await loop

    asyncio.run(meanwhile())
    assert states(one, [old, new]) == [("queued", None)] * 2
    apply(one)
    assert states(one, [old, new]) == [("superseded", 2), ("applied", 2)]
    assert [[edit.target for edit in edits] for edits in one.live_model.made] == [["old"], ["new"]]


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), LedgerDamaged("version 0 is damaged"), JournalFailed("cannot be written")]
)
def test_what_cannot_be_taken_back_yet_ends_nobody_and_is_taken_back_later(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(publish, "FOLLOW_PERIOD_S", 0.005)
    one = worker(tmp_path)
    ids = posted(one, "a")
    apply(one)
    late(one, 1)
    owner, name = (one.live_model, "withdraw")
    if isinstance(fault, JournalFailed):
        owner, name = (one.journal, "reopen")
    else:
        one.edit_loop.publisher.replicas.faults *= 4  # it is the head still, and refused, until it is taken back
    whole, faults, seen = getattr(owner, name), [fault] * 3, []

    def failing(*arguments):
        if faults:
            raise faults.pop()
        return whole(*arguments)

    monkeypatch.setattr(owner, name, failing)

    async def until_queued():
        following = asyncio.create_task(one.edit_loop.publisher.follow())
        async with asyncio.timeout(5):
            while one.journal.depth == 0 or one.edit_loop.stalled:
                seen.append(one.edit_loop.stalled)
                assert not following.done()
                await asyncio.sleep(0.001)
        following.cancel()

    asyncio.run(until_queued())
    assert f"{type(fault).__name__}: {fault}" in seen
    assert states(one, ids) == [("queued", None)] and one.live_model.ledger.head == 0
    apply(one)
    assert [state for state, _ in states(one, ids)] == ["applied"]


def test_edits_that_could_not_be_queued_again_are_before_any_later_one_is_made(tmp_path, monkeypatch):
    one = worker(tmp_path)
    (old,) = posted(one, "p", target="old")
    apply(one)
    late(one, 1)
    with monkeypatch.context() as disk:
        disk.setattr(one.journal, "reopen", lambda version: (_ for _ in ()).throw(JournalFailed("cannot be written")))
        with pytest.raises(JournalFailed):
            asyncio.run(one.edit_loop.publisher.served())
    (new,) = posted(one, "p", target="new")
    apply(one)
    assert states(one, [old, new]) == [("queued", None)] * 2
    apply(one)
    assert states(one, [old, new]) == [("superseded", 2), ("applied", 2)]


def test_where_the_head_was_moved_to_it_stays(tmp_path):
    one = worker(tmp_path)
    posted(one, "a")
    apply(one)
    one.live_model.move_to(0)
    one.edit_loop.publisher.replicas.is_behind, one.edit_loop.publisher.replicas.faults = True, [Unloadable(0, ["r"], "bad file")]
    with pytest.raises(Unloadable):
        asyncio.run(one.edit_loop.publisher.served())
    assert one.live_model.ledger.head == 0 and not one.live_model.withdrawn


def test_a_rollback_to_what_a_replica_refuses_is_put_back(tmp_path):
    one = worker(tmp_path)
    posted(one, "a")
    apply(one)
    one.edit_loop.publisher.replicas.faults = [Unloadable(0, ["r"], "bad file")]
    with pytest.raises(SwapFailed, match="bad file"):
        asyncio.run(one.rollback(0))
    assert one.live_model.ledger.head == 1 and one.edit_loop.publisher.replicas.served == [1, 1]


# -- what is asked of it ----------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_says_when_to_ask_again(tmp_path, monkeypatch):
    monkeypatch.setattr(edit_worker, "check_edits", lambda *_: None)
    one = worker(tmp_path, max_queue=3)
    one.edit_loop.publisher.timings.append({"edit_s": 1.0, "append_s": 0.5, "swap_ms": 500.0, "num_edits": 1})
    body = {"prompt": "p", "target": "t"}
    asyncio.run(one.submit([body, body], False, None))
    with pytest.raises(QueueFull, match="2 edits wait already and 3 may; ask again in 4 s"):
        asyncio.run(one.submit([body, body], False, "k"))
    with pytest.raises(QueueFull, match="4 edits at once are more than the queue holds"):
        asyncio.run(one.submit([body] * 4, False, None))
    assert one.journal.depth == 2
    asyncio.run(one.submit([body], False, "k"))
    assert one.journal.depth == 3


def test_checking_edits_holds_up_nobody_and_keeps_their_order(tmp_path, monkeypatch):
    one = worker(tmp_path)
    monkeypatch.setattr(edit_worker, "check_edits", lambda edits, *_: time.sleep(0.2 if len(edits) > 1 else 0))
    body, longest = {"prompt": "p", "target": "t"}, 0.0

    async def posted_at_once():
        nonlocal longest
        posts = [asyncio.create_task(one.submit(edits, False, None)) for edits in ([body, body], [body])]
        while not all(post.done() for post in posts):
            begin = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - begin)
        return [[edit["id"] for edit in post.result()] for post in posts]

    many, few = asyncio.run(posted_at_once())
    assert [entry.id for entry in one.journal.pending()] == [*many, *few] and longest < 0.1


def test_edits_are_checked_with_a_tokenizer_of_the_doors_own(tmp_path, tiny_model):
    one = worker(tmp_path)
    one._tokenizer, one.live_model.max_tokens = copy.deepcopy(tiny_model.tokenizer), 8
    with pytest.raises(EditRejected, match="has 9 tokens; the model's context holds 8") as refusal:
        asyncio.run(one.submit([{"prompt": "question " * 9, "target": "answer"}], False, None))
    assert refusal.value.field == "prompt" and one.journal.depth == 0


def test_who_posted_an_edit_is_in_the_version(tmp_path):
    one = worker(tmp_path)
    one.journal.submit([{"prompt": "a", "target": "x"}], poster="ann")
    apply(one)
    assert one.live_model.made[0][0] == Edit("a", "x", id=one.journal.newest(1)[0].id, poster="ann")


def test_a_revert_is_a_version_and_the_edits_say_so(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a", "b")
    apply(one)
    answer = asyncio.run(one.revert([ids[0]], [], "auto", "ann"))
    assert (answer["version"], answer["mode"], answer["reverted"]) == (2, "subtract", [ids[0]])
    assert states(one, ids) == [("reverted", 2), ("applied", 1)]
    with pytest.raises(UnknownEdit):
        asyncio.run(one.revert(["nobody"], [], "auto"))
    with pytest.raises(EditRejected, match="nothing"):
        asyncio.run(one.revert([], [], "auto"))
    assert one.edit_loop.publisher.replicas.served == [1, 2]


def test_the_events_of_an_edit_end_when_it_is_settled(tmp_path):
    one = worker(tmp_path)
    (id,) = posted(one, "a")

    async def heard():
        events = aiter(one.edit_events(id))
        first = await anext(events)
        await one.edit_loop._apply(one.journal.take(5))
        return [first, *[event async for event in events]]

    assert [state for state, _ in asyncio.run(heard())] == ["queued", "applying", "applied"]
    assert not one.edit_loop.waiters.event_bus.has_listeners

    async def late():
        return [state async for state, _ in one.edit_events(id)]

    assert asyncio.run(late()) == ["applied"]


def test_everything_that_happens_is_told(tmp_path):
    one = worker(tmp_path)
    (id,) = posted(one, "a")

    async def heard():
        events = one.events()
        first = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        await one.edit_loop._apply(one.journal.take(5))
        await one.rollback(0)
        return [await first, *[await anext(events) for _ in range(4)]]

    found = asyncio.run(heard())
    assert [kind for kind, _ in found] == ["edit", "version", "head", "edit", "head"]
    assert found[-1][1] == {"head": 0, "before": 1} and found[3][1]["id"] == id


def test_edits_are_listed_in_pages(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, *"abcde")
    one.journal.reject(ids[0], "no")
    first = asyncio.run(one.edits(None, 2, None))
    assert [edit["id"] for edit in first["edits"]] == ids[:2:-1]
    second = asyncio.run(one.edits(None, 10, first["next"]))
    assert [edit["id"] for edit in second["edits"]] == ids[2::-1] and second["next"] is None
    assert [edit["id"] for edit in asyncio.run(one.edits("rejected", 5, None))["edits"]] == [ids[0]]


def test_what_was_in_a_version_that_the_disk_lost_is_made_again(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a", "b")
    apply(one, 1)
    apply(one, 1)
    one.live_model.made.pop()
    one.live_model.version = one.live_model.ledger.head = 1
    one.live_model.ledger.set_aside = lambda: [SetAside(2, ("delta.safetensors is torn",), (), tmp_path, was_live=True)]
    one.edit_loop.reconciler.reconcile()
    assert states(one, ids) == [("applied", 1), ("queued", None)]
    apply(one)
    assert states(one, ids) == [("applied", 1), ("applied", 2)]


def test_what_a_lost_version_took_out_is_in_again(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a")
    apply(one)
    asyncio.run(one.revert(ids, [], "auto"))
    one.live_model.made.pop()
    one.live_model.version = one.live_model.ledger.head = 1
    one.live_model.ledger.set_aside = lambda: [SetAside(2, ("its folder is missing",), (), tmp_path, was_live=True)]
    one.edit_loop.reconciler.reconcile()
    assert states(one, ids) == [("applied", 1)]


def test_what_was_rolled_back_before_the_disk_lost_it_stays_out(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a")
    apply(one)
    asyncio.run(one.rollback(0))
    one.live_model.ledger.set_aside = lambda: [SetAside(1, ("it is torn",), (), tmp_path, was_live=False)]
    one.edit_loop.reconciler.reconcile()
    assert states(one, ids) == [("applied", 1)] and one.journal.depth == 0


def test_a_version_that_was_taken_back_is_not_taken_for_made_after_a_restart(tmp_path):
    one = worker(tmp_path)
    one.edit_loop.publisher.replicas.faults = [Unloadable(1, ["r"], "bad file")]
    ids = posted(one, "a")
    apply(one)
    one.edit_loop.reconciler.reconcile()
    assert states(one, ids) == [("queued", None)]
    apply(one)
    one.edit_loop.reconciler.reconcile()
    assert states(one, ids) == [("applied", 2)] and one.live_model.ledger.head == 2


def test_a_revert_that_was_appended_and_not_noted_is_noted_at_start(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a")
    apply(one)
    one.live_model.append(one.live_model.revert(ids, [], "auto"))  # and the worker dies
    one.edit_loop.reconciler.reconcile()
    assert states(one, ids) == [("reverted", 2)]


def test_going_back_before_a_revert_puts_its_edits_in_again(tmp_path):
    one = worker(tmp_path)
    ids = posted(one, "a", "b")
    apply(one)
    asyncio.run(one.revert(ids[:1], [], "auto"))
    asyncio.run(one.rollback(1))
    assert states(one, ids) == [("applied", 1), ("applied", 1)]
    asyncio.run(one.rollback(2))
    assert states(one, ids) == [("reverted", 2), ("applied", 1)]


def test_who_goes_away_leaves_nothing_half_done(tmp_path):
    one = worker(tmp_path)
    posted(one, "a")
    apply(one)
    begun, going_on = threading.Event(), threading.Event()

    def slowly(number, by=""):
        begun.set()
        going_on.wait(5)
        one.live_model.version = one.live_model.ledger.head = number

    one.live_model.move_to = slowly

    async def impatient():
        asked = asyncio.create_task(one.rollback(0))
        await asyncio.to_thread(begun.wait, 5)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert one.edit_loop.writing.locked(), "nobody else may touch the model yet"
        going_on.set()
        async with one.edit_loop.writing:
            return one.edit_loop.publisher.replicas.served[-1]

    assert asyncio.run(impatient()) == 0 == one.live_model.ledger.head


def test_a_rollback_that_some_replicas_are_late_for_has_happened(tmp_path):
    one = worker(tmp_path)
    posted(one, "a")
    apply(one)
    one.edit_loop.publisher.replicas.faults = [SwapFailed(0, ["r"], "TimeoutError")]
    found = asyncio.run(one.rollback(0))
    assert found["version"] == 0 == one.live_model.ledger.head and "not served by r" in found["swap_error"]
    assert one.edit_loop.publisher.replicas.is_behind


def test_those_who_wait_for_late_replicas_share_one_attempt(tmp_path):
    one = worker(tmp_path)
    one.edit_loop.publisher.replicas.is_behind = True

    async def wait():
        await asyncio.gather(*(one.edit_loop.publisher.served() for _ in range(8)))

    asyncio.run(wait())
    assert one.edit_loop.publisher.replicas.served == [0] and not one.edit_loop.publisher.replicas.is_behind


def test_late_replicas_are_asked_again_beside_the_edits(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "FOLLOW_PERIOD_S", 0.005)
    one = worker(tmp_path)
    one.edit_loop.publisher.replicas.is_behind, one.edit_loop.publisher.replicas.faults = True, [SwapFailed(0, ["r"], "late"), SwapFailed(0, ["r"], "late")]

    async def until_served():
        following = asyncio.create_task(one.edit_loop.publisher.follow())
        async with asyncio.timeout(5):
            while one.edit_loop.publisher.replicas.is_behind:
                await asyncio.sleep(0.005)
        following.cancel()

    asyncio.run(until_served())
    assert one.edit_loop.publisher.replicas.served == [0] and not one.edit_loop.publisher.replicas.faults


def test_one_answer_at_a_time_is_looked_into(tmp_path):
    one = worker(tmp_path)
    one._is_blaming = True
    with pytest.raises(Busy):
        asyncio.run(one.blame("p", 1))
