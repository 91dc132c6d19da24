"""The mirror of a ledger in MLflow: every version is registered in order, once. Imports no mlflow.

The ledger itself is the queue, and a cursor beside it holds the progress. MLflow is asked to confirm the cursor only when a
process starts to mirror, and after a call that failed or was interrupted. A lost cursor costs one listing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from errata.ledger import REFUSALS, Ledger, LedgerDamaged, UnknownVersion, Version
from errata.registry.cursor import Cursor, CursorFile, Mirrored, Registered, RegistryConflict

logger = logging.getLogger("errata")

REFUSALS_A_FILE = 1000


class Store(Protocol):
    """The part of MLflow that a mirror needs. Every method raises if MLflow cannot be reached, and may be called again."""

    def forget(self) -> None:
        """Drop the ids that were found in MLflow."""

    def registered(self, after: int) -> Iterator[Registered]:
        """Iterate over the versions with an MLflow number above `after`, in MLflow's order."""

    def at(self, mlflow_version: int) -> Registered | None: ...

    def find(self, version: int) -> Registered | None: ...

    def add(self, version: Version) -> Registered: ...

    def describe(self, mlflow_version: int, version: Version) -> None: ...

    def remove(self, mlflow_version: int) -> None: ...

    def serve(self, mlflow_version: int) -> None:
        """Set the alias `serving` on a version."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the registered model."""

    def run_id(self) -> str:
        """Return the run that holds metrics and refusals."""

    def log_refusals(self, name: str, records: Sequence[Mapping[str, Any]]) -> None: ...

    def log_head_moves(self, moves: Sequence[Mapping[str, Any]]) -> None: ...


class Mirror:
    """The mirror of one ledger in one `store`, as the registered model `name`."""

    def __init__(self, ledger: Ledger, store: Store, name: str) -> None:
        self.ledger, self.store, self.file = ledger, store, CursorFile(ledger, name)
        self._checked: Cursor | None = None  # The cursor that MLflow confirmed last; None after a failure.
        self._ahead: dict[int, Registered] = {}  # Registered beyond the cursor.
        self._serving: Registered | None = None
        self._tags: dict[str, str] = {}
        self._newest: Registered | None = None
        self._refusals_bytes: int | None = None
        self._skipped: set[int] = set()  # Logged once already.

    def advance(self, limit: int | None = None) -> Mirrored:
        """Add at most `limit` versions, then move the alias `serving` as near to the head as the versions in MLflow allow.

        Raises `RegistryUnavailable`, `RegistryConflict`, and `ValueError` for a limit below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"the limit must be 1 or more, not {limit}")
        with self.file.alone():
            cursor = self._begin()
            if self.ledger.head <= cursor.version:
                self._serve(cursor)  # A rollback does not wait for the versions that are queued.
            queue = self._after(cursor)
            added = 0
            while queue and (queue[0] in self._ahead or added != limit):
                added += queue[0] not in self._ahead
                cursor = self._put(cursor, self.ledger.version(queue.popleft()))
            cursor = self._log(cursor)
            self._serve(cursor)
            self._set_tags(len(queue))
            self._checked = cursor
        return Mirrored(added, len(queue), self.ledger.head, self._serving.version if self._serving else None)

    def _after(self, cursor: Cursor) -> deque[int]:
        numbers = range(cursor.version + 1, self.ledger.newest + 1)
        return deque(number for number in numbers if self._must_be_mirrored(number))

    def _must_be_mirrored(self, number: int) -> bool:
        """Return False for a version that is quarantined, or unreadable and not live. Raises `LedgerDamaged` for a live one."""
        try:
            self.ledger.version(number)
        except UnknownVersion:
            return False
        except LedgerDamaged as damage:
            if number in self.ledger.chain(self.ledger.head):
                raise
            if number not in self._skipped:
                logger.warning("the mirror skips version %d, which is not live and cannot be read: %s", number, damage)
                self._skipped.add(number)
            return False
        return True

    def _begin(self) -> Cursor:
        """Return the cursor, confirmed by MLflow if this is the first call or the previous one failed."""
        cursor, checked, self._checked = self.file.read(), self._checked, None
        if cursor == checked:
            return cursor
        self.store.forget()
        self._serving, self._newest, self._tags, self._refusals_bytes = None, None, {}, None
        if cursor.version >= 0 and not self._is_confirmed(cursor):
            cursor = replace(cursor, version=-1, fingerprint="", mlflow_version=0)
        self._ahead = self._look_beyond(cursor)
        return cursor

    def _is_confirmed(self, cursor: Cursor) -> bool:
        found = self.store.at(cursor.mlflow_version)
        agrees = found and (found.version, found.fingerprint) == (cursor.version, cursor.fingerprint)
        return bool(agrees) and self._fault(cursor.version, cursor.fingerprint) is None

    def _look_beyond(self, cursor: Cursor) -> dict[int, Registered]:
        """Return what interrupted calls registered beyond the cursor. Raises `RegistryConflict`."""
        ahead: dict[int, Registered] = {}
        for found in self.store.registered(cursor.mlflow_version):
            if fault := self._fault(found.version, found.fingerprint):
                raise RegistryConflict(
                    f"version {found.mlflow_version} of {self.file.name!r} in MLflow {fault}, so it belongs to another ledger. "
                    "Mirror this one under another name, or delete that registered model; edits go on meanwhile"
                )
            if found.version in ahead or found.version <= cursor.version:
                self.store.remove(found.mlflow_version)  # A request that timed out was carried out after all.
            elif self._must_be_mirrored(found.version):
                ahead[found.version] = found
        return ahead

    def _fault(self, number: int, fingerprint: str) -> str | None:
        """Return why this cannot be a version of the ledger; None if it is one, or was one before it was damaged."""
        try:
            ours = self.ledger.version(number).fingerprint
        except UnknownVersion:
            is_quarantined = number >= 0 and self.ledger.folders.quarantine_path(number).exists()
            return None if is_quarantined else f"is number {number}, which the ledger does not have"
        except LedgerDamaged:
            return None
        return None if fingerprint == ours else f"is number {number} with fingerprint {fingerprint[:12]}, not {ours[:12]}"

    def _put(self, cursor: Cursor, version: Version) -> Cursor:
        """Register and describe a version, and advance the cursor past it."""
        if version.number not in self._ahead:
            added = self.store.add(version)
            self._ahead[version.number] = added
            if added.mlflow_version != cursor.mlflow_version + 1:  # Another version, or this one twice, was registered.
                self._ahead = self._look_beyond(cursor)
        there = self._ahead.pop(version.number)
        if not there.is_described:
            self.store.describe(there.mlflow_version, version)
        self._newest = there
        newest = max(cursor.mlflow_version, there.mlflow_version)
        cursor = replace(cursor, version=version.number, fingerprint=version.fingerprint, mlflow_version=newest)
        if not self._ahead:  # Otherwise `newest` would hide from the next look what is ahead.
            self.file.write(cursor)
        return cursor

    def _serve(self, cursor: Cursor) -> None:
        """Set the alias on the head, or while the head is queued, on its nearest ancestor in MLflow."""
        number = self.ledger.head
        while number > cursor.version:
            number = self.ledger.version(number).parent or 0
        if self._serving and self._serving.version == number:
            return
        found = self._newest if self._newest and self._newest.version == number else self.store.find(number)
        if found is not None:  # Otherwise a user deleted it in MLflow.
            self.store.serve(found.mlflow_version)
        self._serving = found

    def _set_tags(self, left: int) -> None:
        tags = {"errata.live_version": str(self.ledger.head), "errata.behind": str(left)}
        changed = {key: value for key, value in tags.items() if self._tags.get(key) != value}
        if changed:
            self.store.set_tags(changed)
        self._tags = tags

    def _log(self, cursor: Cursor) -> Cursor:
        """Log refused edits and moves of the head."""
        path = self.ledger.directory / REFUSALS
        size = path.stat().st_size if path.exists() else 0
        moves = list(self.ledger.head_log())
        if self._ahead or (size == self._refusals_bytes and len(moves) == cursor.moves):
            return cursor
        refusals, before = list(self.ledger.refusals()), cursor
        if refusals or moves:
            if (run_id := self.store.run_id()) != cursor.run_id:
                cursor = replace(cursor, run_id=run_id, refusals=0, moves=0)
            self._log_refusals(refusals, cursor.refusals)
            if new := moves[cursor.moves :]:
                self.store.log_head_moves(new)
            cursor = replace(cursor, refusals=len(refusals), moves=len(moves))
        if cursor != before:
            self.file.write(cursor)
        self._refusals_bytes = size
        return cursor

    def _log_refusals(self, refusals: Sequence[Mapping[str, Any]], num_there: int) -> None:
        """Write refusals in files of a thousand, so that one more refusal rewrites one file."""
        if len(refusals) > num_there:
            for first in range(num_there // REFUSALS_A_FILE * REFUSALS_A_FILE, len(refusals), REFUSALS_A_FILE):
                self.store.log_refusals(f"refusals-{first:06d}.csv", refusals[first : first + REFUSALS_A_FILE])
