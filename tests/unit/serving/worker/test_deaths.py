"""Deaths of the worker and of its machine: which of them count against an edit, and which put it aside."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from errata.edit import Code
from serving.worker.journal import ASIDE_S, MAX_ASIDE_S, MAX_ATTEMPTS, Journal
from tests.fakes.edit_worker import make_worker, post, states
from tests.unit.serving.worker.test_edit_loop import until_settled


def edits(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "target": "t"} for prompt in prompts]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_an_edit_that_kills_its_worker_repeatedly_is_rejected(path: Path) -> None:
    journal = Journal(path)
    (id,) = journal.submit(edits("a"))
    for _ in range(MAX_ATTEMPTS):
        assert journal.take(1)[0].id == id
        journal.requeue_applying()
    assert journal.get(id).state == "rejected"
    assert "died" in str(journal.get(id).reason)


def opened(path: Path, node: str, journal: Journal | None = None) -> Journal:
    """Open the journal as a new process does, after the death of the one before."""
    if journal is not None:
        journal.close()
    journal = Journal(path, wait_s=0, node=node)
    journal.requeue_applying()
    return journal


def test_deaths_of_the_machine_reject_no_edit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, time=time.time, monotonic=lambda: clock.now)
    monkeypatch.setattr("serving.worker.journal.time", clock)
    journal = opened(path, "0")
    ids = journal.submit(edits("a", "b", "a"))
    for life in range(1, 8):
        assert journal.take(1)[0].id == ids[0]
        journal = opened(path, str(life), journal)
        if life >= 2:
            others = [entry.id for entry in journal.take(8)]
            assert others == [ids[1]], "the later post of the same prompt waits, another one does not"
            journal.requeue(others)
            assert journal.free_in_s == min(MAX_ASIDE_S, ASIDE_S * 2 ** (life - 2))
            clock.now += journal.free_in_s
            assert journal.free_in_s == 0
    assert [journal.get(id).state for id in ids] == ["queued"] * 3
    assert [entry.id for entry in journal.take(8)] == ids[:1] and journal.free_in_s is None


def test_only_deaths_of_a_worker_that_was_alone_with_an_edit_count(path: Path) -> None:
    journal = opened(path, "n")
    ids = journal.submit(edits("a", "b"))
    journal.take(2)
    journal = opened(path, "n", journal)
    assert [journal.get(id).failures for id in ids] == [0, 0]
    for _ in range(MAX_ATTEMPTS):
        assert [entry.id for entry in journal.take(2)] == ids[:1]
        journal = opened(path, "n", journal)
    assert [journal.get(id).state for id in ids] == ["rejected", "queued"]
    assert journal.get(ids[0]).code == Code.ABANDONED


def test_a_process_that_is_ended_on_purpose_counts_against_no_edit(path: Path) -> None:
    journal = opened(path, "n")
    (id,) = journal.submit(edits("a"))
    journal.take(1)
    journal.hand_over()
    assert opened(path, "n", journal).get(id).failures == 0


def test_what_waits_makes_the_later_edits_of_its_prompts_wait(path: Path) -> None:
    journal = opened(path, "0")
    forms = ({"prompt": "p", "form": "chat"}, {"prompt": "p", "form": "both"}, {"prompt": "p"}, {"prompt": "q"})
    ids = journal.submit([{**form, "target": "t"} for form in forms])
    for life in ("1", "2"):
        assert journal.take(1)[0].id == ids[0]
        journal = opened(path, life, journal)
    assert [entry.id for entry in journal.take(8)] == ids[3:]


def test_an_edit_that_is_put_aside_is_made_after_the_others(tmp_path, monkeypatch):
    worker = make_worker(tmp_path)
    ids = post(worker, "a", "b")
    worker.journal._connection.execute("UPDATE edits SET state = 'applying', attempts = 2 WHERE id = ?", (ids[0],))
    monkeypatch.setattr("serving.worker.journal.ASIDE_S", 1.0)
    worker.edit_loop.reconciler.reconcile()
    asyncio.run(until_settled(worker, ids))
    assert states(worker, ids) == [("applied", 2), ("applied", 1)]
