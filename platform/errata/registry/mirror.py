"""What of a ledger is not in MLflow yet, and how it gets there: in order, each version once. Imports no mlflow.

The ledger itself is the queue. Beside it lies a cursor, how far MLflow has it; MLflow is only asked whether that is true when
a process begins to mirror, and after a call that failed, wherever it was cut off. A lost cursor costs one listing.
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
    """MLflow, as much of it as a mirror needs. Every method raises if MLflow cannot be reached, and may be called again."""

    def forget(self) -> None:
        """Ids that were found may no longer be true."""

    def registered(self, after: int) -> Iterator[Registered]:
        """Those with an MLflow number above `after`, in MLflow's order."""

    def at(self, mlflow_version: int) -> Registered | None: ...

    def find(self, version: int) -> Registered | None: ...

    def add(self, version: Version) -> Registered: ...

    def describe(self, mlflow_version: int, version: Version) -> None: ...

    def remove(self, mlflow_version: int) -> None: ...

    def serve(self, mlflow_version: int) -> None:
        """Put the alias there."""

    def tell(self, tags: Mapping[str, str]) -> None:
        """Tags of the registered model."""

    def run_id(self) -> str:
        """The run that metrics and refusals are kept in."""

    def log_refusals(self, name: str, records: Sequence[Mapping[str, Any]]) -> None: ...

    def log_moves(self, moves: Sequence[Mapping[str, Any]]) -> None: ...


class Mirror:
    """One ledger on its way into one `store`, as the registered model `name`."""

    def __init__(self, ledger: Ledger, store: Store, name: str) -> None:
        self.ledger, self.store, self.file = ledger, store, CursorFile(ledger, name)
        self._checked: Cursor | None = None  # what was last found true; None after a failure
        self._ahead: dict[int, Registered] = {}  # registered, but beyond the cursor
        self._serving: Registered | None = None
        self._told: dict[str, str] = {}
        self._newest: Registered | None = None
        self._refusals_bytes: int | None = None
        self._passed_over: set[int] = set()  # told of already

    def bring_up(self, limit: int | None = None) -> Mirrored:
        """Adds `limit` versions at most, then moves the alias `serving` as near to the head as MLflow's versions go.

        Raises `RegistryUnavailable`, `RegistryConflict`, and `ValueError` for a limit below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"a limit of {limit} would never get anywhere; give 1 or more")
        with self.file.alone():
            cursor = self._begin()
            if self.ledger.head <= cursor.version:
                self._serve(cursor)  # a rollback does not wait for the versions before it in the queue
            queue = self._after(cursor)
            added = 0
            while queue and (queue[0] in self._ahead or added != limit):
                added += queue[0] not in self._ahead
                cursor = self._put(cursor, self.ledger.version(queue.popleft()))
            cursor = self._log(cursor)
            self._serve(cursor)
            self._tell(len(queue))
            self._checked = cursor
        return Mirrored(added, len(queue), self.ledger.head, self._serving.version if self._serving else None)

    def _after(self, cursor: Cursor) -> deque[int]:
        numbers = range(cursor.version + 1, self.ledger.newest + 1)
        return deque(number for number in numbers if self._is_to_be_mirrored(number))

    def _is_to_be_mirrored(self, number: int) -> bool:
        """Not what was set aside as damaged, or cannot be read and is not live. Raises `LedgerDamaged` about a live one."""
        try:
            self.ledger.version(number)
        except UnknownVersion:
            return False
        except LedgerDamaged as damage:
            if number in self.ledger.chain(self.ledger.head):
                raise
            if number not in self._passed_over:
                logger.warning("the mirror passes over version %d, which is not live and cannot be read: %s", number, damage)
                self._passed_over.add(number)
            return False
        return True

    def _begin(self) -> Cursor:
        """The cursor, after a look at whether MLflow agrees if this is the first call, or the one before failed."""
        cursor, checked, self._checked = self.file.read(), self._checked, None
        if cursor == checked:
            return cursor
        self.store.forget()
        self._serving, self._newest, self._told, self._refusals_bytes = None, None, {}, None
        if cursor.version >= 0 and not self._is_true(cursor):
            cursor = replace(cursor, version=-1, fingerprint="", mlflow_version=0)
        self._ahead = self._look_beyond(cursor)
        return cursor

    def _is_true(self, cursor: Cursor) -> bool:
        found = self.store.at(cursor.mlflow_version)
        agrees = found and (found.version, found.fingerprint) == (cursor.version, cursor.fingerprint)
        return bool(agrees) and self._fault(cursor.version, cursor.fingerprint) is None

    def _look_beyond(self, cursor: Cursor) -> dict[int, Registered]:
        """What calls that were cut off have registered. Raises `RegistryConflict`."""
        ahead: dict[int, Registered] = {}
        for found in self.store.registered(cursor.mlflow_version):
            if fault := self._fault(found.version, found.fingerprint):
                raise RegistryConflict(
                    f"version {found.mlflow_version} of {self.file.name!r} in MLflow {fault}: it is of another ledger. Mirror "
                    "this one under another name, or delete that registered model; edits go on meanwhile"
                )
            if found.version in ahead or found.version <= cursor.version:
                self.store.remove(found.mlflow_version)  # a request that was given up was carried out after all
            elif self._is_to_be_mirrored(found.version):
                ahead[found.version] = found
        return ahead

    def _fault(self, number: int, fingerprint: str) -> str | None:
        """Why this cannot be a version of the ledger; None if it is one, or was until it was damaged."""
        try:
            ours = self.ledger.version(number).fingerprint
        except UnknownVersion:
            set_aside = number >= 0 and self.ledger.folders.quarantine_path(number).exists()
            return None if set_aside else f"is number {number}, which the ledger does not have"
        except LedgerDamaged:
            return None
        return None if fingerprint == ours else f"is number {number} with fingerprint {fingerprint[:12]}, not {ours[:12]}"

    def _put(self, cursor: Cursor, version: Version) -> Cursor:
        """Have this version registered and described, and the cursor behind it."""
        if version.number not in self._ahead:
            added = self.store.add(version)
            self._ahead[version.number] = added
            if added.mlflow_version != cursor.mlflow_version + 1:  # something else was registered: perhaps this one, twice
                self._ahead = self._look_beyond(cursor)
        there = self._ahead.pop(version.number)
        if not there.is_described:
            self.store.describe(there.mlflow_version, version)
        self._newest = there
        newest = max(cursor.mlflow_version, there.mlflow_version)
        cursor = replace(cursor, version=version.number, fingerprint=version.fingerprint, mlflow_version=newest)
        if not self._ahead:  # else `newest` would hide what is ahead from the next look
            self.file.write(cursor)
        return cursor

    def _serve(self, cursor: Cursor) -> None:
        """The alias, on the head; while that waits for its turn, on the nearest version before it that is there."""
        number = self.ledger.head
        while number > cursor.version:
            number = self.ledger.version(number).parent or 0
        if self._serving and self._serving.version == number:
            return
        found = self._newest if self._newest and self._newest.version == number else self.store.find(number)
        if found is not None:  # else it was deleted in MLflow by hand
            self.store.serve(found.mlflow_version)
        self._serving = found

    def _tell(self, left: int) -> None:
        tags = {"errata.live_version": str(self.ledger.head), "errata.behind": str(left)}
        changed = {key: value for key, value in tags.items() if self._told.get(key) != value}
        if changed:
            self.store.tell(changed)
        self._told = tags

    def _log(self, cursor: Cursor) -> Cursor:
        """What is no version: edits that were refused, and moves of the head."""
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
                self.store.log_moves(new)
            cursor = replace(cursor, refusals=len(refusals), moves=len(moves))
        if cursor != before:
            self.file.write(cursor)
        self._refusals_bytes = size
        return cursor

    def _log_refusals(self, refusals: Sequence[Mapping[str, Any]], num_there: int) -> None:
        """In files of a thousand, so that one more refusal is not all of them once more."""
        if len(refusals) > num_there:
            for first in range(num_there // REFUSALS_A_FILE * REFUSALS_A_FILE, len(refusals), REFUSALS_A_FILE):
                self.store.log_refusals(f"refusals-{first:06d}.csv", refusals[first : first + REFUSALS_A_FILE])
