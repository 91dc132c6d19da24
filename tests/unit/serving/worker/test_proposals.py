"""Proposals: kept durably, within limits, decided once and not by their author, and made as edits with both names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from errata.edit import EditRejected
from serving.worker import edit_worker
from serving.worker.edit_worker import EditWorker
from serving.worker.journal import Journal, KeyReused
from serving.worker.proposals import AlreadyDecided, OwnProposal, ProposalBook, ProposalQuery, UnknownProposal
from serving.worker.queue_limit import QueueFull, QueueLimit
from tests.fakes.edit_worker import apply, logged, make_worker

NO_LIMIT = QueueLimit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def book(path: Path) -> ProposalBook:
    return ProposalBook(Journal(path))


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EditWorker:
    monkeypatch.setattr(edit_worker, "check_edits", lambda *_: None)
    return make_worker(tmp_path, max_proposals=3)


def edit(prompt: str, target: str = "t") -> dict[str, Any]:
    return {"prompt": prompt, "target": target, "form": "completion"}


def test_an_approved_proposal_is_queued_under_its_id_with_both_names(book: ProposalBook, path: Path) -> None:
    (made,) = book.add([edit("p")], author="ann")
    assert (made.state, made.author, book.num_open, book.journal.depth) == ("open", "ann", 1, 0)
    decided = book.approve(made.id, "bob", "it is so", NO_LIMIT)
    assert (decided.state, decided.decider, decided.reason) == ("approved", "bob", "it is so") and decided.decided
    queued = book.journal.get(made.id)
    assert (queued.state, queued.poster, queued.approver) == ("queued", "ann", "bob")
    assert queued.to_json()["approver"] == "bob" and book.num_open == 0
    book.journal.close()
    again = ProposalBook(Journal(path))
    assert again.get(made.id) == decided and again.journal.get(made.id) == queued, "both survive a restart"


def test_a_proposal_is_decided_once(book: ProposalBook) -> None:
    one, other = book.add([edit("p"), edit("q")], author="ann")
    book.approve(one.id, "bob", None, NO_LIMIT)
    book.refuse(other.id, "bob", "no source")
    for id, state in ((one.id, "approved"), (other.id, "refused")):
        with pytest.raises(AlreadyDecided, match=f"is {state} by bob already; nothing was changed"):
            book.approve(id, "eve", None, NO_LIMIT)
        with pytest.raises(AlreadyDecided):
            book.refuse(id, "eve", None)
    assert book.journal.depth == 1 and book.get(other.id).reason == "no source"
    with pytest.raises(UnknownProposal, match="'none'"):
        book.refuse("none", "bob", None)


def test_an_author_may_refuse_an_own_proposal_and_not_approve_it(book: ProposalBook) -> None:
    (made,) = book.add([edit("p")], author="ann")
    with pytest.raises(OwnProposal, match="another key of the role edit or admin must approve it"):
        book.approve(made.id, "ann", None, NO_LIMIT)
    assert book.get(made.id).state == "open" and book.journal.depth == 0
    assert book.refuse(made.id, "ann", None).state == "refused"
    (nameless,) = book.add([edit("q")])
    assert book.approve(nameless.id, None, None, NO_LIMIT).state == "approved", "without keys there are no names"


def test_a_full_queue_leaves_a_proposal_open(book: ProposalBook) -> None:
    (made,) = book.add([edit("p")], author="ann")
    book.journal.submit([edit("q")])
    with pytest.raises(QueueFull):
        book.approve(made.id, "bob", None, QueueLimit(1))
    assert book.get(made.id).state == "open" and book.journal.depth == 1
    book.approve(made.id, "bob", None, QueueLimit(2))


def test_open_proposals_are_limited_in_number_and_bytes(book: ProposalBook) -> None:
    first, _ = book.add([edit("p"), edit("q")], limit=QueueLimit(2))
    with pytest.raises(QueueFull, match=r"2 proposals wait and the limit is 2 \(max_proposals=2\)") as full:
        book.add([edit("r")], limit=QueueLimit(2))
    assert full.value.retry_after_s == 60 and not full.value.is_too_large
    with pytest.raises(QueueFull, match=r"the post has \d+ bytes of proposals, more than may wait \(max_proposal_bytes=300\)"):
        book.add([edit("r" * 300)], limit=QueueLimit(max_bytes=300))
    book.refuse(first.id, None, None)
    assert book.add([edit("r")], limit=QueueLimit(2)), "one that is decided waits no more"


def test_a_repeated_key_proposes_once(book: ProposalBook) -> None:
    made = book.add([edit("p")], "k", "ann")
    assert book.add([edit("p")], "k", "ann") == made
    with pytest.raises(KeyReused):
        book.add([edit("q")], "k", "ann")
    assert book.add([edit("p")], "k", "bob") != made
    assert book.journal.submit([edit("p")], "k", "ann") != [made[0].id], "a key of edits is another one"


def test_pages_go_both_ways_and_end_before_they_are_too_large(book: ProposalBook) -> None:
    made = [book.add([edit(name)])[0].id for name in "abcde"]
    book.refuse(made[2], None, None)

    def page(max_bytes: int = 2**62, **asked: Any) -> tuple[list[str], int | None]:
        found, cursor = book.page(ProposalQuery(**{"limit": 2, **asked}), max_bytes)
        return [one.edit["prompt"] for one in found], cursor

    assert page() == (["e", "d"], 4) and page(before=4) == (["c", "b"], 2) and page(before=2) == (["a"], None)
    assert page(after=0) == (["a", "b"], 2) and page(after=2, state="open") == (["d", "e"], None)
    assert page(state="approved") == ([], None) and page(state="refused") == (["c"], None)
    assert page(limit=5, max_bytes=1) == (["e"], 5) and page(limit=5, max_bytes=120) == (["e", "d"], 4)


def test_an_approved_proposal_is_made_and_names_its_reviewer_in_the_version(
    worker: EditWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "errata")

    async def proposed() -> dict[str, Any]:
        (made,) = await worker.propose([{"prompt": "p", "target": "t"}], "k", "ann")
        assert await worker.proposals(ProposalQuery(10, "open")) == {"proposals": [made], "next": None}
        assert (await worker.proposal(made["id"]))["edit"]["prompt"] == "p"
        return await worker.decide(made["id"], True, "bob", None)

    decided = asyncio.run(proposed())
    apply(worker)
    (made,) = worker.live_model.made[-1]
    assert (made.id, made.poster, made.approver) == (decided["id"], "ann", "bob")
    found = asyncio.run(worker.edit_status(decided["id"]))
    assert (found["state"], found["poster"], found["approver"]) == ("applied", "ann", "bob")
    assert [logged(caplog, name)[0].by for name in ("proposal.made", "proposal.approved")] == ["ann", "bob"]


def test_proposals_are_events_without_texts(worker: EditWorker) -> None:
    async def heard() -> list[dict[str, Any]]:
        with worker.edit_loop.waiters.event_bus.listener() as listener:
            (made,) = await worker.propose([{"prompt": "a secret", "target": "t"}], None, "ann")
            await worker.decide(made["id"], False, "bob", "a secret reason")
            events = aiter(listener)
            found = [await anext(events) for _ in range(2)]
        assert {one.kind for one in found} == {"proposal"}
        return [one.data for one in found]

    first, second = asyncio.run(heard())
    assert (first["state"], first["author"]) == ("open", "ann")
    assert (second["state"], second["decider"]) == ("refused", "bob") and "secret" not in str((first, second))


def test_a_proposal_that_the_rules_refuse_is_neither_kept_nor_approved(
    worker: EditWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EditRejected):
        asyncio.run(worker.propose([{"prompt": "p"}], None, "ann"))
    assert worker.proposal_book.num_open == 0
    (made,) = asyncio.run(worker.propose([{"prompt": "p", "target": "t"}], None, "ann"))

    def refuse(*_: Any) -> None:
        raise EditRejected("is too long for the model of today", code=edit_worker.Code.TOO_LONG, field="prompt")

    monkeypatch.setattr(edit_worker, "check_edits", refuse)
    with pytest.raises(EditRejected):
        asyncio.run(worker.decide(made["id"], True, "bob", None))
    assert worker.proposal_book.get(made["id"]).state == "open" and worker.journal.depth == 0


def test_an_edit_that_only_the_ledger_has_keeps_both_names(book: ProposalBook) -> None:
    known = {**edit("p"), "id": "a1", "poster": "ann", "approver": "bob"}
    assert book.journal.adopt([known], 3, 0.0) == 1
    found = book.journal.get("a1")
    assert (found.poster, found.approver, found.edit) == ("ann", "bob", {**edit("p"), "id": "a1"})


def test_a_worker_keeps_no_more_proposals_than_its_limit(worker: EditWorker) -> None:
    asyncio.run(worker.propose([{"prompt": "p", "target": "t"}] * 2, None, None))
    assert worker.proposal_book.num_open == 2
    with pytest.raises(QueueFull):
        asyncio.run(worker.propose([{"prompt": "p", "target": "t"}] * 2, None, None))
