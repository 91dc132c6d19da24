"""Idempotency-Keys in the journal's database: what a post under a key asked for, and how it was answered, for a stated time.

A key is kept as its SHA-256, together with the author, because keys are the clients' own texts.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KEPT_S = 24 * 3600.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS kept_keys "
    "(key TEXT PRIMARY KEY, digest TEXT NOT NULL, ids TEXT NOT NULL, created REAL NOT NULL, answer TEXT)",
    "CREATE INDEX IF NOT EXISTS kept_keys_by_time ON kept_keys (created)",
)


@dataclass(frozen=True)
class KeptPost:
    """The knowledge of a key: the digest of the posted edits, their ids, and the answer once all of them were settled."""

    digest: str
    ids: list[str]
    answer: list[dict[str, Any]] | None


class KeptKeys:
    """The keys of the last `kept_s` seconds; older ones are as if never used, and leave the table with the next post."""

    def __init__(self, db: sqlite3.Connection, kept_s: float = KEPT_S) -> None:
        self.db, self.kept_s = db, kept_s
        for statement in _SCHEMA:
            db.execute(statement)
        self._take_over_plain_keys()

    def _take_over_plain_keys(self) -> None:
        """Move the keys of earlier releases, which kept them as they were sent and for ever."""
        if not self.db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'keys'").fetchone():
            return
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            query = "SELECT key, digest, ids, (SELECT created FROM edits WHERE id = json_extract(ids, '$[0]')) FROM keys"
            rows = [(_hashed(key), digest, ids, created or time.time()) for key, digest, ids, created in self.db.execute(query)]
            self.db.executemany("INSERT OR IGNORE INTO kept_keys (key, digest, ids, created) VALUES (?, ?, ?, ?)", rows)
            self.db.execute("DROP TABLE keys")

    def find(self, key: str, poster: str | None) -> KeptPost | None:
        """Return what is known of an author's key; None if it is new or has expired."""
        query = "SELECT digest, ids, answer FROM kept_keys WHERE key = ? AND created >= ?"
        found = self.db.execute(query, (_scoped(key, poster), time.time() - self.kept_s)).fetchone()
        return found and KeptPost(found[0], json.loads(found[1]), json.loads(found[2]) if found[2] else None)

    def add(self, key: str, poster: str | None, digest: str, ids: Sequence[str]) -> None:
        """Keep a new key, and forget the expired ones; part of the caller's transaction."""
        now = time.time()
        self.db.execute("DELETE FROM kept_keys WHERE created < ?", (now - self.kept_s,))
        row = (_scoped(key, poster), digest, json.dumps(list(ids)), now)
        self.db.execute("INSERT INTO kept_keys (key, digest, ids, created) VALUES (?, ?, ?, ?)", row)

    def answer(self, key: str, poster: str | None, answer: Sequence[dict[str, Any]]) -> None:
        """Keep the answer to a key; part of the caller's transaction."""
        self.db.execute("UPDATE kept_keys SET answer = ? WHERE key = ?", (json.dumps(list(answer)), _scoped(key, poster)))

    def forget_answers(self) -> None:
        """Forget all answers, because edits that they call settled are queued again; part of the caller's transaction."""
        self.db.execute("UPDATE kept_keys SET answer = NULL WHERE answer IS NOT NULL")


def digest_of_edits(edits: Sequence[dict[str, Any]]) -> str:
    """Return the digest by which two posts under one key are compared."""
    return hashlib.sha256(json.dumps(list(edits), sort_keys=True).encode()).hexdigest()


def _scoped(key: str, poster: str | None) -> str:
    return _hashed(key if poster is None else f"{poster}\n{key}")


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
