"""The durable queue of accepted edits: an edit is written here before its post is acknowledged."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from errata.edit import Code
from errata.ledger.journal_copy import lock_of
from errata.locks import Held, hold
from serving.worker.fact_keys import keys_of
from serving.worker.idempotency import KEPT_S, KeptKeys, digest_of_edits
from serving.worker.journal_entry import COLUMNS, Entry, OpenEdit, Origin, entry_of, first_dated_again
from serving.worker.journal_table import chosen_by, open_database
from serving.worker.queue_limit import QueueFull, QueueLimit

WAIT_S = 30.0  # On a redeployment the new worker starts before the old one has ended.
# An edit is assumed to be the cause if the worker process died this often while it made this edit alone and its node lived on.
MAX_ATTEMPTS = 3
PAGES, PAUSE_S = 1000, 0.005  # Of a copy: so many pages (of 4 KiB) in one step, between which edits are taken.
# An edit whose worker ended twice with its node is put aside: a worker first makes others for so long, and longer each time.
ASIDE_S, MAX_ASIDE_S = 60.0, 600.0


class KeyReused(ValueError):
    """An Idempotency-Key that was used before with other edits."""


class UnknownEdit(LookupError):
    """An id of no edit in the journal."""


class JournalFailed(RuntimeError):
    """A journal that cannot be opened, read or written; nothing of the submission is queued."""


class Journal:
    """A SQLite database in WAL mode; every method is one transaction, with an fsync at its end. Threads may share it.

    Only `finish` of edits that are in a version, where a restart finds them, and the kept `answer` have none. `<path>.lock` is
    held until `close` or until the process dies, so that a worker and its successor never take the same edits. Every method
    raises `JournalFailed` if the disk is full or fails, or the file is damaged; the transaction is then rolled back.
    """

    def __init__(self, path: str | Path, wait_s: float = WAIT_S, keys_kept_s: float = KEPT_S, node: str = "") -> None:
        """Wait up to `wait_s` for the lock; `node` names this life of the machine.

        Raises `JournalFailed` with the process that holds the lock.
        """
        self.node, self._opened_s, self._aside = node, time.monotonic(), list[Entry]()
        self.path, self._one_at_a_time = (path := Path(path)), threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = hold(lock_of(path), wait_s)
        except Held as held:
            raise JournalFailed(f"the journal of edits has one writer, and after {wait_s:g} s {held}; end it first") from None
        try:
            with _sqlite_errors("opened"):
                self._connection = open_database(path)
                self.keys = KeptKeys(self._connection, keys_kept_s)
        except JournalFailed:
            self._lock.close()
            raise

    def close(self) -> None:
        self._connection.close()
        self._lock.close()

    @contextmanager
    def transaction(self, synced: bool = True) -> Iterator[sqlite3.Connection]:
        with self._one_at_a_time, _sqlite_errors("written"):
            self._connection.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
            with self._connection:  # It commits at the end, and rolls back on an exception.
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._one_at_a_time, _sqlite_errors("read"):
            return self._connection.execute(query, values).fetchall()

    def submit(
        self,
        edits: Sequence[dict[str, Any]],
        key: str | None = None,
        poster: str | None = None,
        trace: str | None = None,
        limit: QueueLimit | None = None,
        contradicts: Mapping[int, Sequence[str]] | None = None,
    ) -> list[str]:
        """Queue all edits or none, and return their ids. A repeated key of the same author returns the same ids again.

        `contradicts` has the ids of the edits that some of them, by position, contradict.

        Raises `KeyReused` if the key was used with other edits, `QueueFull` if more than `limit` would be queued.
        """
        digest = digest_of_edits(edits)
        with self.transaction():
            if (known := self.known_post(key, poster, digest)) is not None:
                return known
            ids = [uuid.uuid4().hex for _ in edits]
            others = {ids[i]: found for i, found in (contradicts or {}).items()}
            self.queue(dict(zip(ids, edits, strict=True)), Origin(poster, trace=trace), limit, others)
            if key is not None:
                self.keys.add(key, poster, digest, ids)
        return ids

    def known_post(self, key: str | None, poster: str | None, digest: str) -> list[str] | None:
        """Return the ids of an earlier post under this key; part of the caller's transaction. Raises `KeyReused`."""
        if key is None or (known := self.keys.find(key, poster)) is None:
            return None
        if known.digest != digest:
            raise KeyReused("this Idempotency-Key was used with other edits; give other edits a key of their own")
        return known.ids

    def queue(
        self,
        edits: Mapping[str, dict[str, Any]],
        origin: Origin,
        limit: QueueLimit | None = None,
        contradicts: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Queue edits by their ids; `contradicts` has ids, too. Part of the caller's transaction. Raises `QueueFull`."""
        bodies = {id: json.dumps({**edit, "id": id}) for id, edit in edits.items()}
        if limit is not None:
            self._check_room(list(bodies.values()), limit)
        others = {id: json.dumps(list(found)) for id, found in (contradicts or {}).items()}
        post = time.time(), origin.poster, origin.approver, origin.trace
        names = "id, body, num_bytes, created, poster, approver, trace, question, subject, contradicts, state"
        rows = [(id, body, len(body), *post, *keys_of(edits[id]), others.get(id)) for id, body in bodies.items()]
        self._connection.executemany(f"INSERT INTO edits ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued')", rows)

    def _check_room(self, bodies: Sequence[str], limit: QueueLimit) -> None:
        """Raise `QueueFull` if these would be too many, or too large, with those that are queued."""
        if (depth := self.depth) + len(bodies) > limit.max_edits:
            raise QueueFull(depth, len(bodies), limit.max_edits)
        added = sum(map(len, bodies))
        if (used := self.num_bytes) + added > limit.max_bytes:
            raise QueueFull(used, added, limit.max_bytes, setting="max_queue_bytes")

    def answer(self, ids: Sequence[str], key: str | None = None, poster: str | None = None) -> list[dict[str, Any]]:
        """Return what became of the edits of a post. The first answer under a key in which all are settled is kept."""
        entries = [self.get(id) for id in ids]
        answer = [entry.to_json() for entry in entries]
        if key is None:
            return answer
        with _sqlite_errors("read"):
            known = self.keys.find(key, poster)
        if known is not None and known.answer is not None:
            return [{**kept, "edit": entry.edit} for kept, entry in zip(known.answer, entries, strict=True)]
        if known is not None and all(entry.is_settled for entry in entries):
            with self.transaction(synced=False):
                self.keys.answer(key, poster, [{name: one[name] for name in one if name != "edit"} for one in answer])
        return answer

    def take(self, limit: int) -> list[Entry]:
        """Take the oldest queued edits, which become `applying`. An edit that was taken before is taken alone.

        A correction with a day is not taken with an earlier one of its question, so that each has a version and its time.
        An edit that is put aside waits, and with it the later edits of its prompts, of which the last must count.
        """
        with self.transaction() as db:
            entries = list(islice(self._free(limit), limit))
            fresh = next((i for i, entry in enumerate(entries) if entry.attempts), len(entries))
            entries = entries[: max(1, min(fresh, first_dated_again(entries)))]
            node = self.node if len(entries) == 1 else None
            query = "UPDATE edits SET state = 'applying', attempts = attempts + 1, node = ? WHERE id = ?"
            db.executemany(query, [(node, entry.id) for entry in entries])
        return entries

    def _free(self, page: int) -> Iterator[Entry]:
        """Iterate over the queued edits that need not wait, oldest first."""
        lived_s = time.monotonic() - self._opened_s
        self._aside = [entry for entry in self._aside if _aside_s(entry) > lived_s]
        ids, keys, last = {entry.id for entry in self._aside}, set[Any](), 0
        while found := self._where("state = 'queued' AND seq > ? ORDER BY seq LIMIT ?", last, page):
            last = found[-1].seq
            for entry in found:
                if ids and (entry.id in ids or not keys.isdisjoint(entry.keys)):
                    keys |= entry.keys  # What waits makes the later edits of its own prompts wait, too.
                else:
                    yield entry

    @property
    def free_in_s(self) -> float | None:
        """The seconds until an edit that is put aside may be taken; None if there is none."""
        lived_s = time.monotonic() - self._opened_s
        return min((max(0.0, _aside_s(entry) - lived_s) for entry in self._aside), default=None)

    def finish(
        self,
        ids: Iterable[str],
        version: int,
        unchanged: Mapping[str, str] | None = None,
        superseded: Mapping[str, str] | None = None,
    ) -> None:
        """Settle the edits that a version answers, and in the same transaction those that it supersedes, with the reasons.

        `unchanged` has the answers of edits that the version answered already.
        """
        applied = [(version, (unchanged or {}).get(id), id) for id in ids]
        gone = [(version, reason, Code.CONTRADICTED.value, id) for id, reason in (superseded or {}).items()]
        with self.transaction(synced=bool(unchanged)) as db:
            db.executemany("UPDATE edits SET state = 'applied', version = ?, unchanged = ? WHERE id = ?", applied)
            db.executemany("UPDATE edits SET state = 'superseded', version = ?, reason = ?, code = ? WHERE id = ?", gone)

    def reject(self, id: str, reason: str, field: str | None = None, code: Code | None = None, says: str | None = None) -> None:
        values = (reason, field, code and code.value, says, id)
        self._settle("state = 'rejected', reason = ?, field = ?, code = ?, says = ?", [values])

    def mark_reverted(self, out: Mapping[str, int], back: Mapping[str, int]) -> None:
        """Mark edits as reverted, and others as applied again, each with its version, in one transaction."""
        with self.transaction() as db:
            for state, versions in (("reverted", out), ("applied", back)):
                rows = [(state, version, id) for id, version in versions.items()]
                db.executemany("UPDATE edits SET state = ?, version = ? WHERE id = ?", rows)

    def requeue(self, ids: Iterable[str]) -> None:
        """Put edits back in their place as if never taken. Settled edits stay settled, so that none is made twice."""
        with self.transaction() as db:
            query = "UPDATE edits SET state = 'queued', attempts = attempts - 1 WHERE id = ? AND state = 'applying'"
            db.executemany(query, [(id,) for id in ids])

    def retry(self, ids: Sequence[str], reason: str) -> None:
        """Put edits back that are at fault, to be taken one at a time; after `MAX_ATTEMPTS` they are rejected for `reason`."""
        marks = ", ".join("?" for _ in ids)
        with self.transaction() as db:
            db.execute(f"UPDATE edits SET failures = failures + 1 WHERE id IN ({marks})", tuple(ids))
            db.execute(
                f"UPDATE edits SET state = 'rejected', reason = ?, code = ? WHERE failures >= ? AND id IN ({marks})",
                (reason, Code.ABANDONED.value, MAX_ATTEMPTS, *ids),
            )
            db.execute(f"UPDATE edits SET state = 'queued' WHERE state = 'applying' AND id IN ({marks})", tuple(ids))

    def reopen(self, version: int, or_later: bool = False) -> int:
        """Queue the edits again that were applied or superseded in a lost version, or in a later one; returns their number."""
        with self.transaction() as db:
            fresh = "state = 'queued', version = NULL, reason = NULL, code = NULL, unchanged = NULL"
            fresh += ", attempts = 0, failures = 0, num_bytes = LENGTH(body)"  # An adopted edit had no size.
            those = f"state IN ('applied', 'superseded') AND version {'>=' if or_later else '='} ?"
            if num_edits := db.execute(f"UPDATE edits SET {fresh} WHERE {those}", (version,)).rowcount:
                self.keys.forget_answers()
            return num_edits

    def adopt(self, edits: Iterable[dict[str, Any]], version: int, created: float) -> int:
        """Enter edits with ids that only the ledger has, as applied in `version`; returns the number that was unknown."""
        given = {edit["id"]: edit for edit in edits}
        marks = ", ".join("?" for _ in given)
        known = {row[0] for row in self.rows(f"SELECT id FROM edits WHERE id IN ({marks})", *given)} if given else set()
        new = {id: edit for id, edit in given.items() if id not in known}
        rows = [
            (id, _body_of(edit), version, created, edit.get("poster"), edit.get("approver"), *keys_of(edit))
            for id, edit in new.items()
        ]
        if rows:
            with self.transaction() as db:
                names = "id, body, version, created, poster, approver, question, subject, state"
                columns = f"({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'applied')"
                db.executemany(f"INSERT INTO edits {columns}", rows)
        return len(rows)

    def back_up(self, to: Path) -> None:
        """Write a copy of a point in time to a new file; may run in another thread while edits are taken."""
        with _sqlite_errors("copied"), closing(sqlite3.connect(to)) as copy:
            self._connection.backup(copy, pages=PAGES, sleep=PAUSE_S)
            copy.execute("PRAGMA journal_mode=DELETE")

    def reverted(self) -> dict[str, int]:
        """Return the reverted edits by id, with the versions that took them out."""
        rows = self.rows("SELECT id, version FROM edits WHERE state = 'reverted'")
        return {id: version for id, version in rows}

    def _settle(self, assignment: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self.transaction() as db:
            db.executemany(f"UPDATE edits SET {assignment} WHERE id = ?", rows)

    def requeue_applying(self) -> None:
        """Queue the edits again that a dead process was making.

        The death counts against an edit that was taken alone, in this life of the machine; after `MAX_ATTEMPTS` of them it is
        rejected. A process that ends with its machine says nothing about the edit.
        """
        at_fault = [str(row[0]) for row in self.rows("SELECT id FROM edits WHERE state = 'applying' AND node = ?", self.node)]
        self.retry(at_fault, f"the worker died {MAX_ATTEMPTS} times while it made this edit alone")
        with self.transaction() as db:
            db.execute("UPDATE edits SET state = 'queued' WHERE state = 'applying'")
        self._aside = self._where("state = 'queued' AND attempts - failures >= 2 ORDER BY seq")

    def hand_over(self) -> None:
        """Note that this process is about to be ended on purpose, so that its end counts against no edit."""
        with self.transaction() as db:
            db.execute("UPDATE edits SET node = NULL WHERE state = 'applying'")

    def pending(self) -> list[OpenEdit]:
        """List the open edits, oldest first."""
        query = "SELECT id, state FROM edits WHERE state IN ('queued', 'applying') ORDER BY seq"
        return [OpenEdit(*row) for row in self.rows(query)]

    def unchanged(self) -> list[Entry]:
        """List the applied edits that changed nothing, oldest first."""
        return self._where("state = 'applied' AND unchanged IS NOT NULL ORDER BY seq")

    def newest(
        self,
        limit: int,
        state: str | None = None,
        before: int | None = None,
        max_bytes: int = 2**62,
        subject: str | None = None,
    ) -> list[Entry]:
        """List at most `limit` entries, newest first, optionally in one `state`, about one `subject` and older than `before`.

        They end before the one with which they would have more than `max_bytes`; one is always there.
        """
        chosen, values = chosen_by(state, subject, before)
        query = f"SELECT {COLUMNS} FROM edits WHERE {chosen} ORDER BY seq DESC LIMIT ?"
        found, size = list[Entry](), 0
        with self._one_at_a_time, _sqlite_errors("read"):
            for row in self._connection.execute(query, (*values, limit)):
                size += sum(len(value) for value in row if isinstance(value, str))
                if found and size > max_bytes:
                    break
                found.append(entry_of(row))
        return found

    def has_older(self, seq: int, state: str | None = None, subject: str | None = None) -> bool:
        """Say if an entry, optionally in one `state` and about one `subject`, is older than the one with this `seq`."""
        chosen, values = chosen_by(state, subject, seq)
        return bool(self.rows(f"SELECT 1 FROM edits WHERE {chosen} LIMIT 1", *values))

    def of_question(self, key: str, limit: int) -> list[Entry]:
        """List the applied and open edits of one question, oldest first: of many, the newest `limit`."""
        condition = "question = ? AND state IN ('queued', 'applying', 'applied') ORDER BY seq DESC LIMIT ?"
        return self._where(condition, key, limit)[::-1]

    def get(self, id: str) -> Entry:
        found = self._where("id = ?", id)
        if not found:
            raise UnknownEdit(f"no edit {id!r} was accepted here")
        return found[0]

    def _where(self, condition: str, *values: Any) -> list[Entry]:
        return [entry_of(row) for row in self.rows(f"SELECT {COLUMNS} FROM edits WHERE {condition}", *values)]

    @property
    def depth(self) -> int:
        """The number of queued edits."""
        return int(self.rows("SELECT COUNT(*) FROM edits WHERE state = 'queued'")[0][0])

    @property
    def num_bytes(self) -> int:
        """The size of the queued edits as JSON."""
        return int(self.rows("SELECT COALESCE(SUM(num_bytes), 0) FROM edits WHERE state = 'queued'")[0][0])

    @property
    def num_open(self) -> int:
        """The number of edits that are queued or being made."""
        return int(self.rows("SELECT COUNT(*) FROM edits WHERE state IN ('queued', 'applying')")[0][0])

    @property
    def age_s(self) -> float:
        """The age of the oldest queued edit in seconds; 0 if there is none."""
        oldest = self.rows("SELECT created FROM edits WHERE state = 'queued' ORDER BY seq LIMIT 1")
        return max(0.0, time.time() - oldest[0][0]) if oldest else 0.0


@contextmanager
def _sqlite_errors(what: str) -> Iterator[None]:
    """Raise SQLite's errors as `JournalFailed`."""
    try:
        yield
    except sqlite3.Error as fault:
        raise JournalFailed(f"the journal of edits cannot be {what}: {fault}") from fault


def _body_of(edit: Mapping[str, Any]) -> str:
    """Return the JSON of an edit without the names that have columns of their own."""
    return json.dumps({name: edit[name] for name in edit if name not in ("poster", "approver")})


def _aside_s(entry: Entry) -> float:
    """Return the seconds that a worker must have lived before it takes an edit."""
    return min(MAX_ASIDE_S, ASIDE_S * 2.0 ** (entry.num_interrupted - 2)) if entry.num_interrupted >= 2 else 0.0
