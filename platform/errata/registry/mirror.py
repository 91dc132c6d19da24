"""The mirror of a ledger in MLflow: every version is registered in order, once. Imports no mlflow.

The ledger itself is the queue, and a cursor beside it holds the progress. A call that finds nothing new sends no request. Every
other call first asks MLflow whether the registered model is this ledger's and holds what the cursor says. A lost cursor costs
one listing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from errata.ledger import Ledger, LedgerDamaged, UnknownVersion, Version
from errata.registry.cursor import Cursor, CursorFile, Mirrored, Registered, RegisteredModel, RegistryConflict

logger = logging.getLogger("errata")

ALIAS = "serving"
OWN_TAG, BEHIND_TAG = "errata.live_version", "errata.behind"  # The first marks a registered model as a mirror.
REFUSALS_A_FILE = 1000


class Store(Protocol):
    """The part of MLflow that a mirror needs. Every method raises if MLflow cannot be reached, and may be called again."""

    def forget(self) -> None:
        """Drop the ids that were found in MLflow."""

    def model(self) -> RegisteredModel | None: ...

    def create(self, tags: Mapping[str, str]) -> None:
        """Create the registered model with these tags."""

    def has_versions(self) -> bool:
        """Return True if the registered model has versions, also those of other programs."""

    def registered(self, after: int) -> Iterator[Registered]:
        """Iterate over the mirror's versions with an MLflow number above `after`, in MLflow's order."""

    def at(self, mlflow_version: int) -> Registered | None: ...

    def find(self, version: int) -> Registered | None: ...

    def prepare(self, version: Version) -> str:
        """Upload a version, and return the id of its whole LoggedModel."""

    def add(self, version: Version, model_id: str) -> Registered: ...

    def describe(self, mlflow_version: int, version: Version) -> None: ...

    def remove(self, mlflow_version: int) -> None: ...

    def set_alias(self, alias: str, mlflow_version: int | None) -> None:
        """Set an alias on a version; None deletes it."""

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
        self._done: tuple[Any, ...] | None = None  # What the last call mirrored; None if it failed or left versions.
        self._model: RegisteredModel | None = None
        self._ahead: dict[int, Registered] = {}  # Registered beyond the cursor.
        self._wanted: int | None = None  # The version that the alias was moved for in this call.
        self._serving: Registered | None = None
        self._alias_at: int | None = None  # Where this process left the alias, by MLflow's number.
        self._newest: Registered | None = None
        self._warned: set[int] = set()

    def advance(self, limit: int | None = None) -> Mirrored:
        """Add at most `limit` versions, then move the alias `serving` as near to the head as the versions in MLflow allow.

        Raises `RegistryUnavailable`, `RegistryConflict`, and `ValueError` for a limit below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"the limit must be 1 or more, not {limit}")
        with self.file.alone():
            cursor, done, self._done = self.file.read(), self._done, None
            contents = self._contents()  # Before the work, because edits go on meanwhile.
            queue, added = deque[int](), 0
            if done != (cursor, *contents):
                cursor = self._compare(cursor)
                if self.ledger.head <= cursor.version:
                    self._serve(cursor)  # A rollback does not wait for the versions that are queued.
                queue = self._after(cursor)
                while queue and (queue[0] in self._ahead or added != limit):
                    added += queue[0] not in self._ahead
                    cursor = self._put(cursor, self.ledger.version(queue.popleft()), len(queue))
                cursor = self._log(cursor)
                if not self._ahead and cursor != self.file.read():
                    self.file.write(cursor)
                self._serve(cursor)
                self._set_tags(len(queue))
            self._done = None if queue else (cursor, *contents)
        served = (self._serving.version, self._serving.mlflow_version) if self._serving else (None, None)
        return Mirrored(added, len(queue), self.ledger.head, *served)

    def _contents(self) -> tuple[int, ...]:
        """Return numbers that change with whatever is to be mirrored."""
        return self.ledger.newest, self.ledger.head, len(list(self.ledger.head_log())), self.ledger.refusal_bytes

    def _after(self, cursor: Cursor) -> deque[int]:
        """Return the versions to mirror; version 0 only where an earlier release registered it."""
        numbers = range(max(0 if 0 in self._ahead else 1, cursor.version + 1), self.ledger.newest + 1)
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
            if number not in self._warned:
                logger.warning("the mirror skips version %d, which is not live and cannot be read: %s", number, damage)
                self._warned.add(number)
            return False
        return True

    def _compare(self, cursor: Cursor) -> Cursor:
        """Return the cursor if MLflow confirms it, else the start. Raises `RegistryConflict` before anything is written."""
        self.store.forget()
        self._wanted, self._newest, self._ahead = None, None, {}
        self._model = self.store.model()
        is_confirmed = self._model is not None and cursor.version >= 0 and self._is_confirmed(cursor)
        if not is_confirmed:
            cursor = replace(cursor, version=-1, fingerprint="", mlflow_version=0)
        if self._model is None:
            self._alias_at = None
            return cursor
        self._refuse_another_owner(is_confirmed)
        self._ahead = self._look_beyond(cursor)
        if OWN_TAG not in self._model.tags:
            self._set_tags(len(self._after(cursor)))  # Before versions are added, which would be another's without the tag.
        return cursor

    def _is_confirmed(self, cursor: Cursor) -> bool:
        found = self.store.at(cursor.mlflow_version)
        if found is None or found.has_failed or (found.version, found.fingerprint) != (cursor.version, cursor.fingerprint):
            return False
        return self._fault(cursor.version, cursor.fingerprint) is None

    def _refuse_another_owner(self, is_confirmed: bool) -> None:
        """Raise `RegistryConflict` if the registered model is not this ledger's to write to.

        It is if it has the tag, or the version that the cursor names, or nothing at all.
        """
        model = self._model or RegisteredModel({}, {})
        if model.is_prompt:
            raise RegistryConflict(
                f"{self.file.name!r} in MLflow is a prompt, so it is another's and nothing is written to it. Mirror this "
                "ledger under another name; edits go on meanwhile"
            )
        if OWN_TAG in model.tags or is_confirmed:
            return
        if model.aliases or self.store.has_versions():
            why = "has versions or aliases"
        elif model.tags:
            why = f"has tags ({', '.join(sorted(model.tags)[:3])})"
        else:
            return
        raise RegistryConflict(
            f"the registered model {self.file.name!r} in MLflow {why} and no tag {OWN_TAG}, so it is another's and nothing is "
            "written to it. Mirror this ledger under another name, or set that tag if it is meant for this ledger; edits go on "
            "meanwhile"
        )

    def _look_beyond(self, cursor: Cursor) -> dict[int, Registered]:
        """Return what interrupted calls registered beyond the cursor. Raises `RegistryConflict`."""
        beyond = list(self.store.registered(cursor.mlflow_version))
        for found in beyond:
            if fault := self._fault(found.version, found.fingerprint):
                raise RegistryConflict(
                    f"version {found.mlflow_version} of {self.file.name!r} in MLflow {fault}, so it belongs to another ledger. "
                    "Mirror this one under another name, or delete that registered model; edits go on meanwhile"
                )
        ahead: dict[int, Registered] = {}
        for found in beyond:
            if found.has_failed or found.version in ahead or found.version <= cursor.version:
                self.store.remove(found.mlflow_version)  # A request that timed out was carried out after all, or in part.
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

    def _put(self, cursor: Cursor, version: Version, left: int) -> Cursor:
        """Register and describe a version, and advance the cursor past it."""
        if version.number not in self._ahead:
            model_id = self.store.prepare(version)
            self._create(left + 1)
            added = self.store.add(version, model_id)
            self._ahead[version.number] = added
            if added.mlflow_version != cursor.mlflow_version + 1:
                self._ahead = {version.number: added, **self._look_again(cursor, added)}
        there = self._ahead.pop(version.number)
        if not there.is_described:
            self.store.describe(there.mlflow_version, version)
        self._newest = there
        newest = max(cursor.mlflow_version, there.mlflow_version)
        cursor = replace(cursor, version=version.number, fingerprint=version.fingerprint, mlflow_version=newest)
        if not self._ahead:  # Otherwise `newest` would hide from the next look what is ahead.
            self.file.write(cursor)
        return cursor

    def _look_again(self, cursor: Cursor, added: Registered) -> dict[int, Registered]:
        """Find out why a version got an unexpected number, and take it back if the registered model is now another's.

        Another version, or this one twice, was registered meanwhile; or the model was deleted and a new one was made.
        """
        self._model = self.store.model()
        try:
            self._refuse_another_owner(is_confirmed=False)
        except RegistryConflict:
            self.store.remove(added.mlflow_version)
            raise
        return self._look_beyond(cursor)

    def _serve(self, cursor: Cursor) -> None:
        """Set the alias on the head, or on its nearest ancestor in MLflow while the head is queued, or if it was deleted there.

        The unedited model has no version, and no alias; mirrors of earlier releases have both.
        """
        if self._wanted == self.ledger.head:
            return
        self._wanted = number = self.ledger.head
        while number > max(cursor.version, 0):
            number = self.ledger.version(number).parent or 0
        while (found := self._find(number)) is None and number:
            if number not in self._warned:
                logger.warning(
                    "version %d, which is live or came before the live one, was deleted in %r in MLflow: the alias %r is on a "
                    "version before it; delete %s to mirror it again",
                    *(number, self.file.name, ALIAS, self.file.path),
                )
                self._warned.add(number)
            number = self.ledger.version(number).parent or 0
        self._serving = found
        self._move_alias(found.mlflow_version if found else None)

    def _find(self, number: int) -> Registered | None:
        return self._newest if self._newest and self._newest.version == number else self.store.find(number)

    def _move_alias(self, to: int | None) -> None:
        if self._model is None:
            return
        at = self._model.aliases.get(ALIAS)
        if at != to and self._alias_at not in (None, at):
            logger.warning(
                "the alias %r of %r was moved in MLflow from version %s to %s; it is back on what Errata serves. Use an "
                "alias of another name for other purposes",
                *(ALIAS, self.file.name, self._alias_at, at),
            )
        if at != to:
            self._alias_at = None  # Unknown, if the answer is lost.
            self.store.set_alias(ALIAS, to)
        self._alias_at = to
        self._model.aliases.pop(ALIAS, None)
        if to is not None:
            self._model.aliases[ALIAS] = to

    def _tags(self, left: int) -> dict[str, str]:
        return {OWN_TAG: str(self.ledger.head), BEHIND_TAG: str(left)}

    def _create(self, left: int) -> RegisteredModel:
        """Create the registered model, with the tag that makes it this ledger's, unless it is there."""
        if self._model is None:
            self.store.create(self._tags(left))
            self._model = RegisteredModel(self._tags(left), {})
        return self._model

    def _set_tags(self, left: int) -> None:
        tags, there = self._tags(left), self._create(left).tags
        changed = {key: value for key, value in tags.items() if there.get(key) != value}
        if changed:
            self.store.set_tags(changed)
        there.update(tags)

    def _log(self, cursor: Cursor) -> Cursor:
        """Log refused edits and moves of the head."""
        moves = list(self.ledger.head_log())
        if self._ahead or not (self.ledger.refusal_bytes or moves):
            return cursor
        if (run_id := self.store.run_id()) != cursor.run_id:
            cursor = replace(cursor, run_id=run_id, refusals=0, refusals_at=0, moves=0)
        if new := moves[cursor.moves :]:
            self.store.log_head_moves(new)
        return self._log_refusals(replace(cursor, moves=len(moves)))

    def _log_refusals(self, cursor: Cursor) -> Cursor:
        """Write refusals in tables of a thousand, from the last table on, so that one more refusal rewrites one table.

        Only a table of them is in memory.
        """
        first, begin = cursor.refusals // REFUSALS_A_FILE * REFUSALS_A_FILE, cursor.refusals_at
        if begin > self.ledger.refusal_bytes or (first and not begin):  # The log was replaced, or an earlier release wrote it.
            first, begin = 0, 0
        table: list[dict[str, Any]] = []
        for record, end in self.ledger.refusals_from(begin):
            table.append(record)
            if len(table) == REFUSALS_A_FILE:
                self._log_table(cursor, first, table)
                first, begin, table = first + len(table), end, []
        self._log_table(cursor, first, table)
        return replace(cursor, refusals=first + len(table), refusals_at=begin)

    def _log_table(self, cursor: Cursor, first: int, table: Sequence[Mapping[str, Any]]) -> None:
        """Write a table whose first record has the number `first`, unless all of it is in MLflow."""
        if first + len(table) > cursor.refusals:
            self.store.log_refusals(f"refusals-{first:06d}.csv", table)
