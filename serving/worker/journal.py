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

from errata.edit import Code
from errata.locks import Held, hold

WAIT_S = 30.0  # a redeploy overlaps with the worker that it replaces
# An edit during which the worker process died this often is taken to be the cause of it.
MAX_ATTEMPTS = 3
OPEN, SETTLED = ("queued", "applying"), ("applied", "rejected", "superseded", "reverted")
STATES = OPEN + SETTLED

_SCHEMA = """
CREATE TABLE IF NOT EXISTS edits (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,
    version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL,
    poster TEXT, trace TEXT, code TEXT);
CREATE INDEX IF NOT EXISTS edits_by_state ON edits (state, seq);
CREATE INDEX IF NOT EXISTS edits_by_version ON edits (version);
CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, digest TEXT NOT NULL, ids TEXT NOT NULL);
"""
_NEW_COLUMNS = ("poster", "trace", "code")  # journals of earlier releases lack them
_COLUMNS = "seq, id, body, state, version, reason, field, attempts, created, poster, trace, code"


class KeyReused(ValueError):
    """An Idempotency-Key that came before with other edits."""


class UnknownEdit(LookupError):
    """No edit of this id was ever accepted."""


class QueueFull(RuntimeError):
    """So many edits wait already that no more are taken; nothing of the submission is queued."""

    def __init__(self, depth: int, num_edits: int, limit: int, retry_after_s: int = 1) -> None:
        super().__init__(depth, num_edits, limit, retry_after_s)
        self.depth, self.num_edits, self.limit, self.retry_after_s = depth, num_edits, limit, retry_after_s

    def __str__(self) -> str:
        if self.num_edits > self.limit:
            return f"{self.num_edits} edits at once are more than the queue holds ({self.limit}); post fewer"
        return f"{self.depth} edits wait already and {self.limit} may; ask again in {self.retry_after_s} s. Nothing was queued"


class JournalFailed(RuntimeError):
    """The journal cannot be written, read or had for oneself; nothing of the submission is queued."""


@dataclass(frozen=True)
class Entry:
    """One edit with its fate.

    `queued`, `applying`, `applied` (in `version`), `rejected` (for `reason`, about `field`), `superseded` (by a later edit of
    its batch that answers the same prompt otherwise, in `version`), or `reverted` (applied once, and taken out by `version`).
    `poster` is the name of the key that it came with, `trace` its trace context.
    """

    seq: int
    id: str
    edit: dict[str, Any]
    state: str
    version: int | None
    reason: str | None
    field: str | None
    attempts: int
    created: float
    poster: str | None = None
    trace: str | None = None
    code: str | None = None

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"id": self.id, "state": self.state, "edit": self.edit, "created": self.created}
        for name in ("version", "reason", "code", "field", "poster"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        return data


class Journal:
    """SQLite in WAL mode, fsynced at every commit. Every method is one transaction.

    One at a time: `<path>.lock` is held until `close`, or until the process dies, so that a worker which is being replaced and
    the one that replaces it never take the same edits. Raises `JournalFailed` from every method if the disk is full or fails,
    or the file is damaged; a transaction is then as if it had not been.
    """

    def __init__(self, path: str | Path, wait_s: float = WAIT_S) -> None:
        """Waits up to `wait_s` for whoever has it open. Raises `JournalFailed` saying which process that is."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = hold(path.with_name(f"{path.name}.lock"), wait_s)
        except Held as held:
            raise JournalFailed(f"the journal of edits has one writer, and after {wait_s:g} s {held}; end it first") from None
        try:
            with _told("opened"):
                self._connection = _opened(path)
        except JournalFailed:
            self._lock.close()
            raise

    def close(self) -> None:
        self._connection.close()
        self._lock.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _told("written"), self._connection:  # commits at the end, rolls back if something is raised
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with _told("read"):
            return self._connection.execute(query, values).fetchall()

    def submit(
        self,
        edits: Sequence[dict[str, Any]],
        key: str | None = None,
        poster: str | None = None,
        trace: str | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """Queue all edits or none. The same key of the same poster, with the same edits, gives the same ids again.

        Raises `KeyReused` if the key came with other edits, `QueueFull` if more than `limit` would wait.
        """
        digest = hashlib.sha256(json.dumps(list(edits), sort_keys=True).encode()).hexdigest()
        scoped = key if poster is None else f"{poster}\n{key}"
        with self._transaction() as db:
            if key is not None:
                known = db.execute("SELECT digest, ids FROM keys WHERE key = ?", (scoped,)).fetchone()
                if known is not None:
                    if known[0] != digest:
                        raise KeyReused(f"the Idempotency-Key {key!r} was used with other edits")
                    return list(json.loads(known[1]))
            if limit is not None and (depth := self.depth) + len(edits) > limit:
                raise QueueFull(depth, len(edits), limit)
            ids = [uuid.uuid4().hex for _ in edits]
            db.executemany(
                "INSERT INTO edits (id, body, state, created, poster, trace) VALUES (?, ?, 'queued', ?, ?, ?)",
                [(id, json.dumps({**edit, "id": id}), time.time(), poster, trace) for id, edit in zip(ids, edits, strict=True)],
            )
            if key is not None:
                db.execute("INSERT INTO keys VALUES (?, ?, ?)", (scoped, digest, json.dumps(ids)))
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

    def reject(self, id: str, reason: str, field: str | None = None, code: Code | None = None) -> None:
        self._settle("state = 'rejected', reason = ?, field = ?, code = ?", [(reason, field, code and code.value, id)])

    def supersede(self, id: str, reason: str, version: int) -> None:
        self._settle(
            "state = 'superseded', reason = ?, version = ?, code = ?", [(reason, version, Code.CONTRADICTED.value, id)]
        )

    def revert(self, ids: Iterable[str], version: int) -> None:
        self._settle("state = 'reverted', version = ?", [(version, id) for id in ids])

    def requeue(self, ids: Iterable[str]) -> None:
        """Back to their old place, as if never taken. What is settled already stays so: it must not be made twice."""
        with self._transaction() as db:
            query = "UPDATE edits SET state = 'queued', attempts = attempts - 1 WHERE id = ? AND state = 'applying'"
            db.executemany(query, [(id,) for id in ids])

    def retry(self, ids: Sequence[str], reason: str) -> None:
        """Back to their old place, to be taken one at a time; those that were taken too often are rejected for `reason`."""
        marks = ", ".join("?" for _ in ids)
        with self._transaction() as db:
            db.execute(
                f"UPDATE edits SET state = 'rejected', reason = ?, code = ? WHERE attempts >= ? AND id IN ({marks})",
                (reason, Code.ABANDONED.value, MAX_ATTEMPTS, *ids),
            )
            db.execute(f"UPDATE edits SET state = 'queued' WHERE state = 'applying' AND id IN ({marks})", tuple(ids))

    def reopen(self, version: int) -> int:
        """Queue again what was applied in a version that is lost; returns how many edits that were."""
        with self._transaction() as db:
            query = "UPDATE edits SET state = 'queued', version = NULL, attempts = 0 WHERE state = 'applied' AND version = ?"
            return db.execute(query, (version,)).rowcount

    def reverting(self) -> list[int]:
        """The versions that took edits out."""
        return [int(row[0]) for row in self._read("SELECT DISTINCT version FROM edits WHERE state = 'reverted'")]

    def reverted_by(self, version: int) -> list[str]:
        """The ids of what this version took out."""
        return [entry.id for entry in self._where("state = 'reverted' AND version = ?", version)]

    def _settle(self, assignment: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._transaction() as db:
            db.executemany(f"UPDATE edits SET {assignment} WHERE id = ?", rows)

    def requeue_applying(self) -> None:
        """At start: what a dead process was making is queued again, or rejected if it killed the process too often."""
        taken = [entry.id for entry in self._where("state = 'applying' ORDER BY seq")]
        self.retry(taken, f"the worker died {MAX_ATTEMPTS} times while making it")

    def pending(self) -> list[Entry]:
        """Everything accepted and not settled, oldest first."""
        return self._where("state IN ('queued', 'applying') ORDER BY seq")

    def newest(self, limit: int, state: str | None = None, before: int | None = None) -> list[Entry]:
        """At most `limit` entries, newest first: those in `state` alone, those accepted before the entry `before` (a `seq`)."""
        last = before if before is not None else 2**62
        if state is None:
            return self._where("seq < ? ORDER BY seq DESC LIMIT ?", last, limit)
        return self._where("state = ? AND seq < ? ORDER BY seq DESC LIMIT ?", state, last, limit)

    def get(self, id: str) -> Entry:
        found = self._where("id = ?", id)
        if not found:
            raise UnknownEdit(f"no edit {id!r} was accepted here")
        return found[0]

    def _where(self, condition: str, *values: Any) -> list[Entry]:
        return [_entry(row) for row in self._read(f"SELECT {_COLUMNS} FROM edits WHERE {condition}", *values)]

    @property
    def depth(self) -> int:
        """How many edits wait to be taken."""
        return int(self._read("SELECT COUNT(*) FROM edits WHERE state = 'queued'")[0][0])

    @property
    def age_s(self) -> float:
        """How long the oldest of them has waited, in seconds; 0 if none waits."""
        oldest = self._read("SELECT created FROM edits WHERE state = 'queued' ORDER BY seq LIMIT 1")
        return max(0.0, time.time() - oldest[0][0]) if oldest else 0.0


@contextmanager
def _told(what: str) -> Iterator[None]:
    """SQLite's errors in the words of the house. Raises `JournalFailed`."""
    try:
        yield
    except sqlite3.Error as fault:
        raise JournalFailed(f"the journal of edits cannot be {what}: {fault}") from fault


def _opened(path: Path) -> sqlite3.Connection:
    """Raises `sqlite3.Error`."""
    connection = sqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
    # Said first, the log's index is in this process's memory: shared memory would be a mapped file, which no network share has.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    present = {row[1] for row in connection.execute("PRAGMA table_info(edits)")}
    for column in _NEW_COLUMNS if present else ():
        if column not in present:
            connection.execute(f"ALTER TABLE edits ADD COLUMN {column} TEXT")
    connection.executescript(_SCHEMA)
    return connection


def _entry(row: tuple[Any, ...]) -> Entry:
    seq, id, body, *rest = row
    return Entry(seq, id, json.loads(body), *rest)
