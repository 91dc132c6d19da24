"""The durable queue of accepted edits: an edit is written here before its post is acknowledged."""

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
from typing import Any, NamedTuple

from errata.edit import SETTLED, Code
from errata.locks import Held, hold

WAIT_S = 30.0  # On a redeployment the new worker starts before the old one has ended.
# An edit during which the worker process died this often is assumed to be the cause.
MAX_ATTEMPTS = 3

LEFT_OUT_OF_EVENTS = ("edit", "says", "answers")
MAX_REASON = 1_000  # characters in an event

_SCHEMA = """
CREATE TABLE IF NOT EXISTS edits (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,
    version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL,
    poster TEXT, trace TEXT, code TEXT, unchanged TEXT, says TEXT, num_bytes INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS edits_by_state ON edits (state, seq);
CREATE INDEX IF NOT EXISTS edits_by_size ON edits (state, num_bytes);
CREATE INDEX IF NOT EXISTS edits_by_version ON edits (version);
CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, digest TEXT NOT NULL, ids TEXT NOT NULL);
"""
# Journals of earlier releases lack these.
_NEW_COLUMNS = {name: "TEXT" for name in ("poster", "trace", "code", "unchanged", "says")}
_NEW_COLUMNS["num_bytes"] = "INTEGER NOT NULL DEFAULT 0"
_COLUMNS = "seq, id, body, state, version, reason, field, attempts, created, poster, trace, code, unchanged, says"


class KeyReused(ValueError):
    """An Idempotency-Key that was used before with other edits."""


class UnknownEdit(LookupError):
    """An id of no edit in the journal."""


class QueueFull(RuntimeError):
    """A submission that would exceed a limit of the queue, `setting`: in edits or in bytes; nothing of it is queued."""

    def __init__(self, used: int, added: int, limit: int, retry_after_s: int = 1, setting: str = "max_queue") -> None:
        super().__init__(used, added, limit, retry_after_s, setting)
        self.used, self.added, self.limit, self.retry_after_s, self.setting = used, added, limit, retry_after_s, setting

    @property
    def is_too_large(self) -> bool:
        """Say if the submission fits in no queue, so that it need not be repeated."""
        return self.added > self.limit

    def __str__(self) -> str:
        what, setting = "edits" if self.setting == "max_queue" else "bytes of edits", f"({self.setting}={self.limit})"
        if self.is_too_large:
            return f"the post has {self.added} {what} and the queue holds {self.limit} {setting}; post fewer in one request"
        return (
            f"{self.used} {what} are queued and the limit is {self.limit} {setting}; nothing was queued. "
            f"Try again in {self.retry_after_s} s"
        )


class JournalFailed(RuntimeError):
    """A journal that cannot be opened, read or written; nothing of the submission is queued."""


@dataclass(frozen=True)
class QueueLimit:
    """The most edits that may wait, and the most bytes that they may have together."""

    max_edits: int = 2**62
    max_bytes: int = 2**62


class OpenEdit(NamedTuple):
    """An edit that is `queued` or `applying`, without its content: all of them may be larger than the memory."""

    id: str
    state: str


@dataclass(frozen=True)
class Entry:
    """One edit and its state.

    `queued`, `applying`, `applied` (in `version`), `rejected` (for `reason`, about `field`; the model `says` something else),
    `superseded` (in `version`, by a later edit of its batch with the same prompt and another target), or `reverted` (applied
    once, and reverted by `version`).
    `poster` is the author: the name of the access key of the post. `trace` is the trace context of the post. `unchanged` is the
    answer of the model that `version` already gave when the edit was applied, so that it changed nothing.
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
    unchanged: str | None = None
    says: str | None = None

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"id": self.id, "state": self.state, "edit": self.edit, "created": self.created}
        for name in ("version", "reason", "code", "field", "says", "poster"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        if self.state == "applied":
            data["changed"] = self.unchanged is None
        if self.unchanged is not None:
            data["answers"] = {"before": self.unchanged, "after": self.unchanged}
        return data


def event_of(entry: Entry) -> dict[str, Any]:
    """Return the state of an edit as an event, without its texts, which may fill a MiB, and with the beginning of a reason."""
    data = {name: part for name, part in entry.to_json().items() if name not in LEFT_OUT_OF_EVENTS}
    return data | ({"reason": entry.reason[:MAX_REASON]} if entry.reason is not None else {})


class Journal:
    """A SQLite database in WAL mode with an fsync at every commit; every method is one transaction.

    `<path>.lock` is held until `close` or until the process dies, so that a worker and its successor never take the same
    edits. Every method raises `JournalFailed` if the disk is full or fails, or the file is damaged; the transaction is then
    rolled back.
    """

    def __init__(self, path: str | Path, wait_s: float = WAIT_S) -> None:
        """Wait up to `wait_s` for the lock. Raises `JournalFailed` with the process that holds it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = hold(path.with_name(f"{path.name}.lock"), wait_s)
        except Held as held:
            raise JournalFailed(f"the journal of edits has one writer, and after {wait_s:g} s {held}; end it first") from None
        try:
            with _sqlite_errors("opened"):
                self._connection = _open(path)
        except JournalFailed:
            self._lock.close()
            raise

    def close(self) -> None:
        self._connection.close()
        self._lock.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _sqlite_errors("written"), self._connection:  # Commits at the end, rolls back on an exception.
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with _sqlite_errors("read"):
            return self._connection.execute(query, values).fetchall()

    def submit(
        self,
        edits: Sequence[dict[str, Any]],
        key: str | None = None,
        poster: str | None = None,
        trace: str | None = None,
        limit: QueueLimit | None = None,
    ) -> list[str]:
        """Queue all edits or none, and return their ids. A repeated key of the same author returns the same ids again.

        Raises `KeyReused` if the key was used with other edits, `QueueFull` if more than `limit` would be queued.
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
            ids = [uuid.uuid4().hex for _ in edits]
            bodies = [json.dumps({**edit, "id": id}) for id, edit in zip(ids, edits, strict=True)]
            if limit is not None:
                self._check_room(bodies, limit)
            db.executemany(
                "INSERT INTO edits (id, body, num_bytes, state, created, poster, trace) VALUES (?, ?, ?, 'queued', ?, ?, ?)",
                [(id, body, len(body), time.time(), poster, trace) for id, body in zip(ids, bodies, strict=True)],
            )
            if key is not None:
                db.execute("INSERT INTO keys VALUES (?, ?, ?)", (scoped, digest, json.dumps(ids)))
        return ids

    def _check_room(self, bodies: Sequence[str], limit: QueueLimit) -> None:
        """Raise `QueueFull` if these would be too many, or too large, with those that are queued."""
        if (depth := self.depth) + len(bodies) > limit.max_edits:
            raise QueueFull(depth, len(bodies), limit.max_edits)
        added = sum(map(len, bodies))
        if (used := self.num_bytes) + added > limit.max_bytes:
            raise QueueFull(used, added, limit.max_bytes, setting="max_queue_bytes")

    def take(self, limit: int) -> list[Entry]:
        """Take the oldest queued edits, which become `applying`. An edit that was taken before is taken alone."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM edits WHERE state = 'queued' ORDER BY seq LIMIT ?", (limit,)).fetchall()
            entries = [_entry(row) for row in rows]
            fresh = next((i for i, entry in enumerate(entries) if entry.attempts), len(entries))
            entries = entries[: max(1, fresh)]
            db.executemany(
                "UPDATE edits SET state = 'applying', attempts = attempts + 1 WHERE id = ?", [(entry.id,) for entry in entries]
            )
        return entries

    def finish(self, ids: Iterable[str], version: int, unchanged: str | None = None) -> None:
        self._settle("state = 'applied', version = ?, unchanged = ?", [(version, unchanged, id) for id in ids])

    def reject(self, id: str, reason: str, field: str | None = None, code: Code | None = None, says: str | None = None) -> None:
        values = (reason, field, code and code.value, says, id)
        self._settle("state = 'rejected', reason = ?, field = ?, code = ?, says = ?", [values])

    def supersede(self, id: str, reason: str, version: int) -> None:
        self._settle(
            "state = 'superseded', reason = ?, version = ?, code = ?", [(reason, version, Code.CONTRADICTED.value, id)]
        )

    def revert(self, ids: Iterable[str], version: int) -> None:
        self._settle("state = 'reverted', version = ?", [(version, id) for id in ids])

    def requeue(self, ids: Iterable[str]) -> None:
        """Put edits back in their place as if never taken. Settled edits stay settled, so that none is made twice."""
        with self._transaction() as db:
            query = "UPDATE edits SET state = 'queued', attempts = attempts - 1 WHERE id = ? AND state = 'applying'"
            db.executemany(query, [(id,) for id in ids])

    def retry(self, ids: Sequence[str], reason: str) -> None:
        """Put edits back in their place, to be taken one at a time; after `MAX_ATTEMPTS` they are rejected for `reason`."""
        marks = ", ".join("?" for _ in ids)
        with self._transaction() as db:
            db.execute(
                f"UPDATE edits SET state = 'rejected', reason = ?, code = ? WHERE attempts >= ? AND id IN ({marks})",
                (reason, Code.ABANDONED.value, MAX_ATTEMPTS, *ids),
            )
            db.execute(f"UPDATE edits SET state = 'queued' WHERE state = 'applying' AND id IN ({marks})", tuple(ids))

    def reopen(self, version: int) -> int:
        """Queue the edits again that were applied in a lost version; returns their number."""
        with self._transaction() as db:
            fresh = "state = 'queued', version = NULL, unchanged = NULL, attempts = 0"
            query = f"UPDATE edits SET {fresh} WHERE state = 'applied' AND version = ?"
            return db.execute(query, (version,)).rowcount

    def reverting(self) -> list[int]:
        """List the versions that reverted edits."""
        return [int(row[0]) for row in self._read("SELECT DISTINCT version FROM edits WHERE state = 'reverted'")]

    def reverted_by(self, version: int) -> list[str]:
        """List the ids of the edits that a version reverted."""
        return [str(row[0]) for row in self._read("SELECT id FROM edits WHERE state = 'reverted' AND version = ?", version)]

    def _settle(self, assignment: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._transaction() as db:
            db.executemany(f"UPDATE edits SET {assignment} WHERE id = ?", rows)

    def requeue_applying(self) -> None:
        """Queue the edits again that a dead process was making; after `MAX_ATTEMPTS` deaths they are rejected."""
        taken = [open.id for open in self.pending() if open.state == "applying"]
        self.retry(taken, f"the worker died {MAX_ATTEMPTS} times while making it")

    def pending(self) -> list[OpenEdit]:
        """List the open edits, oldest first."""
        query = "SELECT id, state FROM edits WHERE state IN ('queued', 'applying') ORDER BY seq"
        return [OpenEdit(*row) for row in self._read(query)]

    def unchanged(self) -> list[Entry]:
        """List the applied edits that changed nothing, oldest first."""
        return self._where("state = 'applied' AND unchanged IS NOT NULL ORDER BY seq")

    def newest(self, limit: int, state: str | None = None, before: int | None = None, max_bytes: int = 2**62) -> list[Entry]:
        """List at most `limit` entries, newest first, optionally in one `state` and older than the entry `before` (a `seq`).

        They end before the one with which they would have more than `max_bytes`; one is always there.
        """
        chosen = "seq < ?" if state is None else "state = ? AND seq < ?"
        values = (*([] if state is None else [state]), 2**62 if before is None else before, limit)
        query = f"SELECT {_COLUMNS} FROM edits WHERE {chosen} ORDER BY seq DESC LIMIT ?"
        found, size = list[Entry](), 0
        with _sqlite_errors("read"):
            for row in self._connection.execute(query, values):
                size += sum(len(value) for value in row if isinstance(value, str))
                if found and size > max_bytes:
                    break
                found.append(_entry(row))
        return found

    def has_older(self, seq: int, state: str | None = None) -> bool:
        """Say if an entry, optionally in one `state`, is older than the one with this `seq`."""
        chosen, values = ("seq < ?", (seq,)) if state is None else ("state = ? AND seq < ?", (state, seq))
        return bool(self._read(f"SELECT 1 FROM edits WHERE {chosen} LIMIT 1", *values))

    def get(self, id: str) -> Entry:
        found = self._where("id = ?", id)
        if not found:
            raise UnknownEdit(f"no edit {id!r} was accepted here")
        return found[0]

    def _where(self, condition: str, *values: Any) -> list[Entry]:
        return [_entry(row) for row in self._read(f"SELECT {_COLUMNS} FROM edits WHERE {condition}", *values)]

    @property
    def depth(self) -> int:
        """The number of queued edits."""
        return int(self._read("SELECT COUNT(*) FROM edits WHERE state = 'queued'")[0][0])

    @property
    def num_bytes(self) -> int:
        """The size of the queued edits as JSON."""
        return int(self._read("SELECT COALESCE(SUM(num_bytes), 0) FROM edits WHERE state = 'queued'")[0][0])

    @property
    def num_open(self) -> int:
        """The number of edits that are queued or being made."""
        return int(self._read("SELECT COUNT(*) FROM edits WHERE state IN ('queued', 'applying')")[0][0])

    @property
    def age_s(self) -> float:
        """The age of the oldest queued edit in seconds; 0 if there is none."""
        oldest = self._read("SELECT created FROM edits WHERE state = 'queued' ORDER BY seq LIMIT 1")
        return max(0.0, time.time() - oldest[0][0]) if oldest else 0.0


@contextmanager
def _sqlite_errors(what: str) -> Iterator[None]:
    """Raise SQLite's errors as `JournalFailed`."""
    try:
        yield
    except sqlite3.Error as fault:
        raise JournalFailed(f"the journal of edits cannot be {what}: {fault}") from fault


def _open(path: Path) -> sqlite3.Connection:
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


def _entry(row: tuple[Any, ...]) -> Entry:
    seq, id, body, *rest = row
    return Entry(seq, id, json.loads(body), *rest)
