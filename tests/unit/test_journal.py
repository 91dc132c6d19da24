"""The journal: nothing accepted is lost, nothing is made twice."""

from __future__ import annotations

import pickle
import sqlite3
import time
from pathlib import Path

import pytest

from serving.journal import MAX_ATTEMPTS, Journal, JournalFailed, KeyReused, QueueFull, UnknownEdit


def edits(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "target": "t"} for prompt in prompts]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "journal"


def test_edits_are_taken_in_order_and_settle(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b", "c"))
    assert journal.depth == 3
    taken = journal.take(2)
    assert [entry.id for entry in taken] == ids[:2]
    assert taken[0].edit == {"prompt": "a", "target": "t", "id": ids[0]}
    assert [journal.get(id).state for id in ids] == ["applying", "applying", "queued"]
    journal.finish([ids[0]], 7)
    journal.reject(ids[1], "no", "prompt")
    assert journal.get(ids[0]).to_json()["version"] == 7
    assert {"reason": "no", "field": "prompt"}.items() <= journal.get(ids[1]).to_json().items()
    assert [entry.id for entry in journal.pending()] == ids[2:]
    assert journal.get(ids[1]).is_settled and not journal.get(ids[2]).is_settled


def test_another_process_finds_what_was_accepted(path: Path) -> None:
    first = Journal(path)
    ids = first.submit(edits("a", "b", "c"))
    first.take(1)
    second = Journal(path)
    second.requeue_applying()
    assert second.depth == 3
    assert [entry.id for entry in second.take(8)] == ids[:1], "what was taken before is taken alone"
    assert [entry.id for entry in second.take(8)] == ids[1:]


def test_an_edit_that_kills_its_worker_is_rejected_in_the_end(path: Path) -> None:
    journal = Journal(path)
    (id,) = journal.submit(edits("a"))
    for _ in range(MAX_ATTEMPTS):
        assert journal.take(1)[0].id == id
        journal.requeue_applying()
    assert journal.get(id).state == "rejected"
    assert "died" in str(journal.get(id).reason)


def test_requeue_does_not_count_as_an_attempt(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"))
    journal.take(2)
    journal.requeue(ids)
    assert [entry.id for entry in journal.take(2)] == ids


def test_a_key_used_again_gives_the_same_ids_or_is_refused(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"), "key")
    assert journal.submit(edits("a", "b"), "key") == ids
    assert journal.depth == 2
    with pytest.raises(KeyReused, match="other edits"):
        journal.submit(edits("a"), "key")
    assert journal.depth == 2
    assert Journal(path).submit(edits("a", "b"), "key") == ids


def test_an_unknown_id_is_named(path: Path) -> None:
    with pytest.raises(UnknownEdit, match="'x'"):
        Journal(path).get("x")


def test_a_submission_is_all_or_nothing(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(TypeError):
        journal.submit([{"prompt": "a"}, {"prompt": object()}])
    assert journal.depth == 0


def test_a_full_queue_takes_nothing_of_a_submission(path: Path) -> None:
    journal = Journal(path)
    journal.submit(edits("a", "b"), limit=3)
    with pytest.raises(QueueFull) as full:
        journal.submit(edits("c", "d"), "key", limit=3)
    assert (full.value.depth, full.value.num_edits, journal.depth) == (2, 2, 2)
    assert journal.submit(edits("c"), "key", limit=3) and journal.depth == 3
    assert pickle.loads(pickle.dumps(full.value)).limit == 3


def test_the_same_key_of_two_posters_is_two_keys(path: Path) -> None:
    journal = Journal(path)
    mine, yours = (journal.submit(edits("a"), "k", poster) for poster in ("ann", "bob"))
    assert mine != yours and journal.submit(edits("a"), "k", "ann") == mine
    assert [journal.get(id).to_json()["poster"] for id in (*mine, *yours)] == ["ann", "bob"]


def test_what_is_lost_with_a_version_is_queued_again_in_its_place(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b", "c"))
    journal.take(2)
    journal.finish(ids[:2], 4)
    assert journal.reopen(3) == 0 and journal.reopen(4) == 2
    assert [entry.id for entry in journal.take(8)] == ids


def test_what_cannot_be_served_is_tried_alone_and_given_up_in_the_end(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"))
    journal.take(2)
    journal.retry(ids, "no replica takes it")
    for _ in range(MAX_ATTEMPTS - 1):
        assert [entry.id for entry in journal.take(2)] == ids[:1]
        journal.retry(ids[:1], "no replica takes it")
    assert (journal.get(ids[0]).state, journal.get(ids[0]).reason) == ("rejected", "no replica takes it")
    assert [entry.id for entry in journal.take(2)] == ids[1:]


def test_later_fates_are_kept(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"))
    journal.take(2)
    journal.supersede(ids[0], "the later one counts", 1)
    journal.finish(ids[1:], 1)
    journal.revert(ids[1:], 2)
    found = [(entry.state, entry.version, entry.is_settled) for entry in map(Journal(path).get, ids)]
    assert found == [("superseded", 1, True), ("reverted", 2, True)]


def test_the_oldest_that_waits_has_an_age(path: Path) -> None:
    journal = Journal(path)
    assert journal.age_s == 0.0
    journal.submit(edits("a"))
    time.sleep(0.02)
    assert 0.02 <= journal.age_s < 5


def test_a_journal_of_an_earlier_release_is_read(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE edits (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL,"
        " state TEXT NOT NULL, version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0,"
        " created REAL NOT NULL);"
        "INSERT INTO edits (id, body, state, created) VALUES ('x', '{\"prompt\": \"a\"}', 'queued', 1.0);"
    )
    old.close()
    journal = Journal(path)
    assert journal.get("x").poster is None and journal.depth == 1
    assert journal.get(journal.submit(edits("b"), poster="ann")[0]).poster == "ann"


def test_a_full_disk_refuses_and_leaves_the_journal_as_it_was(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a"))
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to a full disk
    with pytest.raises(JournalFailed, match="full"):
        journal.submit(edits(*("x" * 1000 for _ in range(100))), "key")
    assert journal.depth == 1 and journal.get(ids[0]).state == "queued"
    journal._connection.execute("PRAGMA max_page_count = 1000000")
    assert len(journal.submit(edits(*("x" * 1000 for _ in range(100))), "key")) == 100
