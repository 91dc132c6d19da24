"""The durable queue of edits that were accepted and not yet made. What is acknowledged over HTTP is in here first."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# An edit during which the worker process died this often is taken to be the cause of it.
MAX_ATTEMPTS = 3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS edits (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,
    version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS edits_by_state ON edits (state, seq);
CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, digest TEXT NOT NULL, ids TEXT NOT NULL);
"""
_COLUMNS = "id, body, state, version, reason, field, attempts, created"


class KeyReused(ValueError):
    """An Idempotency-Key that came before with other edits."""


class UnknownEdit(LookupError):
    """No edit of this id was ever accepted."""


@dataclass(frozen=True)
class Entry:
    """One edit with its fate: `queued`, `applying`, `applied` (in `version`) or `rejected` (for `reason`, about `field`)."""

    id: str
    edit: dict[str, Any]
    state: str
    version: int | None
    reason: str | None
    field: str | None
    attempts: int
    created: float

    @property
    def is_settled(self) -> bool:
        return self.state in ("applied", "rejected")

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"id": self.id, "state": self.state, "edit": self.edit, "created": self.created}
        for name in ("version", "reason", "field"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        return data


class Journal:
    """SQLite in WAL mode, fsynced at every commit; one process writes. Every method is one transaction."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection:  # commits at the end, rolls back if something is raised
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def submit(self, edits: Sequence[dict[str, Any]], key: str | None = None) -> list[str]:
        """Queue all edits or none. The same key with the same edits gives the same ids again.

        Raises `KeyReused` if the key came with other edits.
        """
        digest = hashlib.sha256(json.dumps(list(edits), sort_keys=True).encode()).hexdigest()
        with self._transaction() as db:
            if key is not None:
                known = db.execute("SELECT digest, ids FROM keys WHERE key = ?", (key,)).fetchone()
                if known is not None:
                    if known[0] != digest:
                        raise KeyReused(f"the Idempotency-Key {key!r} was used with other edits")
                    return list(json.loads(known[1]))
            ids = [uuid.uuid4().hex for _ in edits]
            db.executemany(
                "INSERT INTO edits (id, body, state, created) VALUES (?, ?, 'queued', ?)",
                [(id, json.dumps({**edit, "id": id}), time.time()) for id, edit in zip(ids, edits, strict=True)],
            )
            if key is not None:
                db.execute("INSERT INTO keys VALUES (?, ?, ?)", (key, digest, json.dumps(ids)))
        return ids

    def take(self, limit: int) -> list[Entry]:
        """The oldest queued edits, now `applying`. One that was taken before, and not settled, is taken alone."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM edits WHERE state = 'queued' ORDER BY seq LIMIT ?", (limit,)).fetchall()
            entries = [_entry(row) for row in rows]
            fresh = next((i for i, entry in enumerate(entries) if entry.attempts), len(entries))
            entries = entries[: max(1, fresh)]
            db.executemany(
                "UPDATE edits SET state = 'applying', attempts = attempts + 1 WHERE id = ?", [(entry.id,) for entry in entries]
            )
        return entries

    def finish(self, ids: Iterable[str], version: int) -> None:
        self._settle("state = 'applied', version = ?", [(version, id) for id in ids])

    def reject(self, id: str, reason: str, field: str | None = None) -> None:
        self._settle("state = 'rejected', reason = ?, field = ?", [(reason, field, id)])

    def requeue(self, ids: Iterable[str]) -> None:
        """Back to their old place, as if never taken."""
        self._settle("state = 'queued', attempts = attempts - 1", [(id,) for id in ids])

    def _settle(self, assignment: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._transaction() as db:
            db.executemany(f"UPDATE edits SET {assignment} WHERE id = ?", rows)

    def requeue_applying(self) -> None:
        """At start: what a dead process was making is queued again, or rejected if it killed the process too often."""
        with self._transaction() as db:
            reason = f"the worker died {MAX_ATTEMPTS} times while making it"
            db.execute(
                "UPDATE edits SET state = 'rejected', reason = ? WHERE state = 'applying' AND attempts >= ?",
                (reason, MAX_ATTEMPTS),
            )
            db.execute("UPDATE edits SET state = 'queued' WHERE state = 'applying'")

    def pending(self) -> list[Entry]:
        """Everything accepted and not settled, oldest first."""
        query = f"SELECT {_COLUMNS} FROM edits WHERE state IN ('queued', 'applying') ORDER BY seq"
        return [_entry(row) for row in self._connection.execute(query)]

    def get(self, id: str) -> Entry:
        row = self._connection.execute(f"SELECT {_COLUMNS} FROM edits WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise UnknownEdit(f"no edit {id!r} was accepted here")
        return _entry(row)

    @property
    def depth(self) -> int:
        """How many edits wait to be taken."""
        return int(self._connection.execute("SELECT COUNT(*) FROM edits WHERE state = 'queued'").fetchone()[0])


def _entry(row: tuple[Any, ...]) -> Entry:
    id, body, *rest = row
    return Entry(id, json.loads(body), *rest)
