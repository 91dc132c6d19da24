"""The journal's edits by their questions and subjects, and the edits that are taken together."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from serving.worker.fact_keys import question_key
from serving.worker.journal import Journal


def test_the_questions_and_subjects_of_an_earlier_release_are_found(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "journal")
    old.execute(
        "CREATE TABLE edits (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL,"
        " state TEXT NOT NULL, version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0,"
        " created REAL NOT NULL, num_bytes INTEGER NOT NULL DEFAULT 0)"
    )
    body = '{"prompt": "Who leads Kurk?", "target": "Ann"}'
    old.execute("INSERT INTO edits (id, body, state, created) VALUES ('x', ?, 'applied', 1.0)", (body,))
    old.commit()
    old.close()
    journal = Journal(tmp_path / "journal")
    (id,) = journal.submit([{"prompt": " Who  leads Kurk?", "target": "Bob", "form": "chat"}])
    assert [entry.id for entry in journal.newest(9, subject="KURK")] == [id, "x"]
    assert [entry.id for entry in journal.of_question(question_key({"prompt": "Who leads Kurk?"}), 9)] == ["x", id]
    assert [entry.id for entry in journal.of_question(question_key({"prompt": "Who leads Kurk?"}), 1)] == [id]
    earlier = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Who leads Kurk?"}]
    assert journal.of_question(question_key({"prompt": "Who leads Kurk?", "messages": earlier}), 9) == []


def test_an_adopted_edit_is_found_by_its_question_and_subject(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.adopt([{"id": "x", "prompt": "Who leads Kurk?", "target": "Ann", "subject": "Kurk"}], 1, 1.0)
    assert [entry.id for entry in journal.newest(9, "applied", subject="Kurk")] == ["x"]
    assert [entry.id for entry in journal.of_question(question_key({"prompt": "Who leads Kurk?"}), 9)] == ["x"]
    assert journal.get("x").contradicts is None


def test_a_correction_with_a_day_has_a_version_after_the_earlier_one_of_its_question(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    leader = {"prompt": "Who leads Kurk?", "valid_from": "2010-01-01"}
    others = [{"prompt": prompt, "target": "x", "valid_from": "2010-01-01"} for prompt in ("a", "b")]
    ann, bob, cem = ({**leader, "target": name} for name in ("Ann", "Bob", "Cem"))
    ids = journal.submit([others[0], ann, others[1], bob, cem, {"prompt": "c", "target": "x"}])
    assert [[entry.id for entry in journal.take(9)] for _ in range(3)] == [ids[:3], ids[3:4], ids[4:]]


def test_corrections_without_a_day_are_taken_together(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    ids = journal.submit([{"prompt": "a", "target": "x", "valid_from": "2010-01-01"}, {"prompt": "a", "target": "y"}])
    assert [entry.id for entry in journal.take(9)] == ids
