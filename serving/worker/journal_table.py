"""The database of the journal: its table and indexes, and what journals of earlier releases lack."""

from __future__ import annotations

import sqlite3
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS edits (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,
    version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL,
    poster TEXT, trace TEXT, code TEXT, unchanged TEXT, says TEXT, failures INTEGER NOT NULL DEFAULT 0, node TEXT,
    num_bytes INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS edits_by_state ON edits (state, seq);
CREATE INDEX IF NOT EXISTS edits_by_size ON edits (state, num_bytes);
CREATE INDEX IF NOT EXISTS edits_by_version ON edits (version);
"""
_NEW_COLUMNS = dict.fromkeys(("poster", "trace", "code", "unchanged", "says", "node"), "TEXT")  # Old journals lack these.
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
    return connection
