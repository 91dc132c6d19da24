"""Idempotency-Keys: kept for a time with their answer, compared, hashed, and known after a restore."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from errata.edit import Code
from serving.worker.journal import Journal, KeyReused
from tests.unit.serving.worker.test_journal import edits


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def num_keys(journal: Journal) -> int:
    return int(journal.rows("SELECT COUNT(*) FROM kept_keys")[0][0])


def test_a_key_is_kept_for_a_time_and_then_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, now = Journal(path, keys_kept_s=60), time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    first = journal.submit(edits("a"), "k")
    journal.submit(edits("b"), "other")
    now += 59
    assert journal.submit(edits("a"), "k") == first
    now += 2
    with pytest.raises(KeyReused):
        journal.submit(edits("a"), "new") and journal.submit(edits("b"), "new")
    assert num_keys(journal) == 1, "the table does not only grow"
    assert journal.submit(edits("z"), "k") != first
    assert num_keys(journal) == 2


def test_a_copy_of_the_journal_has_the_keys_with_their_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path, keys_kept_s=60)
    ids = journal.submit(edits("a"), "k", "ada")
    journal.back_up(path.with_name("copy"))
    restored, now = Journal(path.with_name("copy"), keys_kept_s=60), time.time()
    assert restored.submit(edits("a"), "k", "ada") == ids
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert restored.submit(edits("a"), "k", "ada") != ids


def test_the_answer_to_a_key_is_kept_once_all_its_edits_are_settled(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"), "k")
    assert [entry["state"] for entry in journal.answer(ids, "k")] == ["queued", "queued"]
    journal.finish(ids[:1], 3)
    assert [entry["state"] for entry in journal.answer(ids, "k")] == ["applied", "queued"]
    journal.reject(ids[1], "no", "target", Code.UNSOLVABLE)
    settled = journal.answer(ids, "k")
    assert [(entry["state"], entry["edit"]["prompt"]) for entry in settled] == [("applied", "a"), ("rejected", "b")]
    journal.mark_reverted({ids[0]: 5}, {})
    assert journal.answer(ids, "k") == settled
    assert [entry["state"] for entry in journal.answer(ids)] == ["reverted", "rejected"]
    journal.close()
    again = Journal(path)
    assert again.answer(again.submit(edits("a", "b"), "k"), "k") == settled


def test_an_answer_is_forgotten_when_its_edits_are_queued_again(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a"), "k")
    journal.finish(ids, 3)
    journal.answer(ids, "k")
    assert journal.reopen(2, or_later=True) == 1
    assert [entry["state"] for entry in journal.answer(ids, "k")] == ["queued"]


def test_no_key_is_in_the_file_as_it_was_sent(path: Path) -> None:
    journal = Journal(path)
    journal.submit(edits("a"), "secret-of-a-client", "ada")
    journal.close()
    assert b"secret-of-a-client" not in path.read_bytes()


def test_keys_of_an_earlier_release_are_kept_hashed_with_the_time_of_their_edits(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a"), "k", "ada")
    (digest,) = journal.rows("SELECT digest FROM kept_keys")[0]
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE kept_keys")
        db.execute("CREATE TABLE keys (key TEXT PRIMARY KEY, digest TEXT NOT NULL, ids TEXT NOT NULL)")
        db.execute("INSERT INTO keys VALUES (?, ?, ?)", ("ada\nk", digest, f'["{ids[0]}"]'))
    db.close()
    journal = Journal(path)
    assert journal.submit(edits("a"), "k", "ada") == ids
    assert journal.rows("SELECT created FROM kept_keys")[0][0] == journal.get(ids[0]).created
    assert not journal.rows("SELECT 1 FROM sqlite_master WHERE name = 'keys'")
    journal.close()
