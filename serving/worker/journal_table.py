"""The database of the journal: its tables and indexes, what journals of earlier releases lack, and conditions of queries."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from serving.worker.fact_keys import keys_of, subject_key

_SCHEMA = """
CREATE TABLE IF NOT EXISTS edits (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,
    version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL,
    poster TEXT, trace TEXT, code TEXT, unchanged TEXT, says TEXT, failures INTEGER NOT NULL DEFAULT 0, node TEXT,
    approver TEXT, num_bytes INTEGER NOT NULL DEFAULT 0, question TEXT, subject TEXT, contradicts TEXT);
CREATE INDEX IF NOT EXISTS edits_by_state ON edits (state, seq);
CREATE INDEX IF NOT EXISTS edits_by_size ON edits (state, num_bytes);
CREATE INDEX IF NOT EXISTS edits_by_version ON edits (version);
CREATE INDEX IF NOT EXISTS edits_by_question ON edits (question, seq);
CREATE INDEX IF NOT EXISTS edits_by_subject ON edits (subject, seq);
CREATE TABLE IF NOT EXISTS proposals (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL, num_bytes INTEGER NOT NULL,
    state TEXT NOT NULL, created REAL NOT NULL, author TEXT, decided REAL, decider TEXT, reason TEXT);
CREATE INDEX IF NOT EXISTS proposals_by_state ON proposals (state, seq);
"""
_OLD_LACK = ("poster", "trace", "code", "unchanged", "says", "node", "question", "subject", "contradicts", "approver")
_NEW_COLUMNS = dict.fromkeys(_OLD_LACK, "TEXT")
_NEW_COLUMNS |= dict.fromkeys(("failures", "num_bytes"), "INTEGER NOT NULL DEFAULT 0")


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create the database. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
    # Set before WAL: keeps the WAL index in process memory, because shared memory (mmap) does not work on network file systems.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    present = {row[1] for row in connection.execute("PRAGMA table_info(edits)")}
    for column, kind in _NEW_COLUMNS.items() if present else ():
        if column not in present:
            connection.execute(f"ALTER TABLE edits ADD COLUMN {column} {kind}")
    connection.executescript(_SCHEMA)
    if present and "num_bytes" not in present:
        connection.execute("UPDATE edits SET num_bytes = LENGTH(body) WHERE state IN ('queued', 'applying')")
    if present and "question" not in present:
        connection.create_function("question_of", 1, lambda body: keys_of(json.loads(body)).question, deterministic=True)
        connection.create_function("subject_of", 1, lambda body: keys_of(json.loads(body)).subject, deterministic=True)
        connection.execute("UPDATE edits SET question = question_of(body), subject = subject_of(body)")
    return connection


def chosen_by(state: str | None, subject: str | None, before: int | None) -> tuple[str, list[Any]]:
    """Return the condition of a query for entries before one (a `seq`), and its values."""
    given = {
        "state = ?": state,
        "subject = ?": subject and subject_key(subject),
        "seq < ?": 2**62 if before is None else before,
    }
    chosen = {sql: value for sql, value in given.items() if value is not None}
    return " AND ".join(chosen), list(chosen.values())
