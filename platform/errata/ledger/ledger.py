"""The chain of versions on disk: each is a delta, the editor's state after it, the edits, and its scorecard.

Versions are only ever added: under a temporary name, synced, renamed, so that a crash leaves a whole version or none.
Version 0 is the unedited model. Weights and editor state are one version, so going back takes both back.
Reading needs no lock; one writer at a time holds `lock`. What a version is never changes, hence the caches.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from errata.delta.weight_delta import WeightDelta
from errata.durable import append_record, new_folder, records
from errata.edit import Edit, EditRejected
from errata.editors.state import EditorState
from errata.ledger import entry as entries
from errata.ledger import quarantine
from errata.ledger.editor_states import StateRows, gathered, new_rows
from errata.ledger.entry import (
    DELTA,
    ENTRY,
    STATE,
    LedgerConflict,
    LedgerDamaged,
    Origin,
    UnknownVersion,
    Version,
    child_fingerprint,
    damaged,
)
from errata.ledger.export import export
from errata.ledger.folders import Folders
from errata.ledger.head import Head
from errata.ledger.index import EditIndex, Index
from errata.ledger.quarantine import QuarantinedVersion
from errata.ledger.snapshots import Snapshots, read_segments
from errata.locks import hold

REFUSALS = "refusals.jsonl"


class Ledger:
    """A ledger directory. Make one with `Ledger.create`, or open it anywhere with `Ledger.open`.

    Every `snapshot_every` versions, their factors are also written into one file, so that opening version N reads about
    N / `snapshot_every` files; the snapshot keeps each version's tensors apart, so the sum has the same bits either way.
    """

    def __init__(self, directory: str | Path, snapshot_every: int = 20) -> None:
        self.directory, self.snapshot_every = Path(directory), snapshot_every
        self.folders, self.snapshots = Folders(self.directory / "versions"), Snapshots(self.directory / "snapshots")
        self.heads, self.index = Head(self.directory), Index(self.directory / "index")
        self.forget()

    def forget(self) -> None:
        """Read everything from disk again, for whoever has changed it otherwise than by adding to it."""
        self._versions: dict[int, Version] = {}
        self._holders, self._live = EditIndex(), (0, frozenset[int]())
        self._checked = set[int]()
        self._last: tuple[int, EditorState] = (0, EditorState())
        self.index.forget()

    @classmethod
    def create(cls, directory: str | Path, base: Mapping[str, Any], snapshot_every: int = 20) -> Ledger:
        """A ledger over `base`, {"model": path, "fingerprint": str, "matrices": [names]}: new, or the one that is there.

        Raises `ValueError` if `base` lacks one of these, or a ledger over another base is there.
        """
        base = {**base, "matrices": list(base.get("matrices", ())), "model": str(base.get("model", ""))}
        if missing := [key for key in ("model", "fingerprint", "matrices") if not base.get(key)]:
            raise ValueError(f"the base of a ledger needs {', '.join(missing)}")
        ledger = cls(directory, snapshot_every)
        for folder in ("versions", "snapshots"):
            (ledger.directory / folder).mkdir(parents=True, exist_ok=True)
        with ledger.only_writer():
            if not ledger.folders.path(0).exists():
                with new_folder(ledger.folders.path(0)) as folder_0:
                    written = entries.write_entry(folder_0, {**entries.new_entry(0, None, base["fingerprint"]), "base": base})
                ledger.index.add(written, ())
        if ledger.base != base:
            raise ValueError(f"the ledger in {directory} is over another base: {ledger.base}, not {base}")
        return ledger

    @classmethod
    def open(cls, directory: str | Path, snapshot_every: int = 20) -> Ledger:
        """Raises `FileNotFoundError` if no ledger is there."""
        ledger = cls(directory, snapshot_every)
        if not (ledger.folders.path(0) / ENTRY).exists():
            raise FileNotFoundError(f"there is no ledger in {directory}")
        return ledger

    @property
    def base(self) -> dict[str, Any]:
        return cast(dict[str, Any], entries.read_entry(self.folders.path(0))["base"])

    @property
    def newest(self) -> int:
        """The highest number there is."""
        return self.folders.newest

    @property
    def head(self) -> int:
        """The version to serve: the newest, unless the head was moved after the newest was made."""
        moved = self.heads.last()
        newest = self.newest
        return newest if newest > moved["after"] else moved["version"]

    def head_before(self, number: int) -> int | None:
        """Where the head was when `number` was appended; None if it was moved since, and for version 0."""
        moved = self.heads.last()
        if number <= max(0, moved["after"]):
            return None
        before = max(other for other in self.folders.numbers() if other < number)
        return before if before > moved["after"] else moved["version"]

    def head_log(self) -> Iterator[dict[str, Any]]:
        """{"version", "after", "before", "time", "by"} of every time that the head was moved, oldest first.

        Where a version was withdrawn by it, the number is "withdrawn".
        """
        return self.heads.entries()

    def version(self, number: int) -> Version:
        """Raises `UnknownVersion`, or `LedgerDamaged` if it cannot be read."""
        if number not in self._versions:
            path = self.folders.existing(number)
            self._versions[number] = self.index.find(number, path) or entries.read_version(path)
        return self._versions[number]

    def versions(self) -> list[Version]:
        """All that can be read, version 0 first, with those that no longer lead to the head."""
        return [version for number in self.folders.numbers() if (version := self._readable(number))]

    def _readable(self, number: int) -> Version | None:
        with contextlib.suppress(LedgerDamaged, UnknownVersion):
            return self.version(number)
        return None

    def chain(self, number: int) -> list[int]:
        """The versions whose deltas make `number`, in order, without version 0."""
        numbers: list[int] = []
        while number:
            numbers.append(number)
            number = self.version(number).parent or 0
        return numbers[::-1]

    def delta(self, number: int) -> WeightDelta:
        """Raises `LedgerDamaged` if it is not the one that the version's fingerprint names."""
        version = self.version(number)
        if not number:
            return WeightDelta({})
        try:
            delta = WeightDelta.load(version.directory / DELTA)
        except (SafetensorError, ValueError, FileNotFoundError) as wrong:
            raise damaged(version.directory, f"{DELTA} cannot be read: {wrong}") from None
        if not self.are_of([number], [delta]):
            raise damaged(version.directory, f"{DELTA} is not what was written")
        return delta

    def are_of(self, numbers: Collection[int], deltas: Collection[WeightDelta]) -> bool:
        """Whether these deltas are those of consecutive versions, by their fingerprints."""
        return len(numbers) == len(deltas) and all(
            child_fingerprint(self.version(self.version(n).parent or 0).fingerprint, delta) == self.version(n).fingerprint
            for n, delta in zip(numbers, deltas, strict=True)
        )

    def state(self, number: int) -> EditorState | None:
        """What the editor remembers after `number`; None for version 0, which no editor made. Raises `LedgerDamaged`."""
        self.version(number)
        if number and self._last[0] != number:
            self._last = number, gathered(self._rows, number).state
        return self._last[1] if number else None

    def _rows(self, number: int, names: Collection[str] | None) -> StateRows:
        if (covered := self._covered(number)) and self.snapshots.holds_state(number):
            return StateRows.load(self.snapshots.state_path(number), self.version(covered[0]).parent or 0, names)
        version = self.version(number)
        path = entries.check_file(version, STATE)
        try:
            return StateRows.load(path, version.parent or 0, names)
        except SafetensorError as wrong:
            raise damaged(version.directory, f"{STATE} cannot be read: {wrong}") from None

    def files_to(self, number: int, snapshots: bool = True) -> list[Path]:
        """The files that make version `number` from the base: `read_segments` of each, in order, is `segments(number)`.

        For who finds a snapshot among them damaged: without `snapshots` they are the versions' own, to the same bits.
        """
        stretches = self._stretches(number) if snapshots else [([each], False) for each in self.chain(number)]
        return [self.snapshots.path(n[-1]) if is_joined else self.folders.path(n[-1]) / DELTA for n, is_joined in stretches]

    def segments(self, number: int) -> list[WeightDelta]:
        """The deltas to sum, in this order, onto the base; of a snapshot that is damaged, from the versions themselves.

        Raises `LedgerDamaged`.
        """
        deltas: list[WeightDelta] = []
        for numbers, is_joined in self._stretches(number):
            deltas += (self.joined(numbers[-1]) if is_joined else None) or map(self.delta, numbers)
        return deltas

    def joined(self, number: int) -> list[WeightDelta] | None:
        """The deltas in the snapshot that ends at a version; None if it is damaged or there is none."""
        with contextlib.suppress(SafetensorError, ValueError, KeyError, TypeError, FileNotFoundError):
            found = read_segments(self.snapshots.path(number))
            if number not in self._checked and self.are_of(self.snapshots.covered_by(number), found):
                self._checked.add(number)
            return found if number in self._checked else None
        return None

    def _stretches(self, number: int) -> list[tuple[list[int], bool]]:
        """The chain in stretches: those that a snapshot joins, and between them versions of their own."""
        self.version(number)
        found: list[tuple[list[int], bool]] = []
        while number:
            covered = self._covered(number)
            found.append((covered or [number], bool(covered)))
            number = self.version(found[-1][0][0]).parent or 0
        return found[::-1]

    def _covered(self, number: int) -> list[int]:
        """The versions that the snapshot that ends at `number` joins; none if that is no stretch of the chain (damage)."""
        covered, ancestor = self.snapshots.covered_by(number), number
        for each in reversed(covered):
            if not ancestor or each != ancestor:
                return []
            ancestor = self.version(ancestor).parent or 0
        return covered

    def append(
        self,
        parent: int,
        delta: WeightDelta,
        state: EditorState,
        edits: Iterable[Edit],
        scorecard: Mapping[str, Any],
        origin: Origin,
        expected_head: int | None = None,
    ) -> Version:
        """Add the version that follows `parent`, and make it the head.

        `parent` is the head, unless the new version is to branch off before it: then say which head that was made for.
        Raises `LedgerConflict` if `expected_head` (`parent` where not given) is not the head, `UnknownVersion` if there is
        no `parent`. Any other failure leaves the ledger as it was, but for a number that others may have seen and that is not
        used again.
        """
        expected, edits = parent if expected_head is None else expected_head, tuple(edits)
        with self.only_writer():
            if expected != self.head:
                raise LedgerConflict(expected, self.head)
            fingerprint = child_fingerprint(self.version(parent).fingerprint, delta)
            rows = new_rows(state, self.state(parent) or EditorState())
            self._take_snapshot(parent)  # before the version, so that a failure here leaves no version behind
            number = self.folders.next_number
            path = self.folders.path(number)
            entry = entries.new_entry(number, parent, fingerprint, origin, scorecard, delta)
            with self._never_seen_twice(number), new_folder(path, self.folders.quarantine_path(number)) as folder:
                entries.write_tensors(folder / DELTA, delta.to_tensors())
                rows.save(folder / STATE)
                entries.write_edits(folder, edits)
                written = entries.write_entry(folder, entry)
                version = entries.as_written(written, edits, path)
            self._last, self._versions[number] = (number, state), version
            with contextlib.suppress(OSError):  # the version is there without its line
                self.index.add(written, edits)
        return version

    @contextmanager
    def _never_seen_twice(self, number: int) -> Iterator[None]:
        """A version that was there for a moment, and may have been served, has its number for good."""
        try:
            yield
        except OSError as fault:
            if self.folders.quarantine_path(number).exists():
                with contextlib.suppress(OSError):
                    self.folders.write_note(number, [f"it could not be made durable: {fault}"], was_live=False)
            raise

    def _take_snapshot(self, number: int) -> None:
        """Once the chain to `number` has `snapshot_every` deltas since its last snapshot, join these into one file."""
        numbers: list[int] = []
        ancestor = number
        while ancestor and not self._covered(ancestor):
            numbers.append(ancestor)
            ancestor = self.version(ancestor).parent or 0
        if len(numbers) >= self.snapshot_every:
            self.join(numbers[::-1])

    def join(self, numbers: list[int]) -> None:
        """Write the snapshot of consecutive versions of the chain."""
        before = self.version(numbers[0]).parent or 0
        self.snapshots.save({n: self.delta(n) for n in numbers}, gathered(self._rows, numbers[-1], before))

    def move_head(self, number: int, by: str = "") -> None:
        """Serve `number` again, or once more a later one. Nothing is deleted; the next version will follow `number`.

        `by` is who asked for it, for the record. A failure leaves the head where it is. Raises `UnknownVersion`, or
        `LedgerDamaged` if the files of `number` are not what was written.
        """
        self._check_whole(number)
        with self.only_writer():
            if (before := self.head) != number:
                self.heads.move(number, self.newest, before, by)

    def retract(self, number: int, to: int, by: str = "") -> None:
        """Take back a version that nobody could serve: the head is `to`, and `find_edit` never answers `number`.

        For right after its append: its edits are then made again, in another version. A failure leaves the head where it is.
        Raises `UnknownVersion`, `LedgerDamaged` as `move_head`, and `ValueError` if `to` comes from `number`.
        """
        self.version(number)
        if number in (0, *self.chain(to)):
            raise ValueError(f"version {number} cannot be withdrawn: version {to}, which is to be the head, comes from it")
        self._check_whole(to)
        with self.only_writer():
            self.heads.move(to, self.newest, self.head, by, number)

    def retracted(self) -> frozenset[int]:
        """The versions that were taken back by `retract`."""
        return self.heads.retracted()

    def _check_whole(self, number: int) -> None:
        if faults := self.verify(number):
            raise damaged(self.folders.path(number), "; ".join(faults))

    def edits(self, number: int) -> Iterator[Edit]:
        """Those of every version that makes `number`, in order."""
        for ancestor in self.chain(number):
            yield from self.version(ancestor).edits

    def refuse(self, parent: int, edit: Edit, refusal: EditRejected) -> None:
        """Note down an edit that was not made on `parent`, and why: for the record, versions are as they were."""
        scores = getattr(refusal, "scores", {})
        record = {
            "time": entries.utc_now(),
            "parent": parent,
            "edit": edit.to_json(),
            "reason": refusal.reason,
            "code": refusal.code.value,
            "field": refusal.field,
        }
        with self.only_writer():
            append_record(self.directory / REFUSALS, {**record, "scores": scores})

    def refusals(self) -> Iterator[dict[str, Any]]:
        """{"time", "parent", "edit", "reason", "field", "scores"} of every edit that was refused, oldest first."""
        return records(self.directory / REFUSALS)

    def find_edit(self, edit_id: str) -> int | None:
        """The version that made the edit with this id: one that the head comes from, else another; of several the newest.

        Never one that was withdrawn, or cannot be read.
        """
        if not (found := self._holders.of(edit_id, self.newest, self._readable)):
            return None
        if (head := self.head) != self._live[0]:
            self._live = head, frozenset(self.chain(head))
        return max(set(found) - self.retracted(), key=lambda number: (number in self._live[1], number), default=None)

    def verify(self, number: int) -> list[str]:
        """What is wrong with a version: files missing, cut off or changed, or not of its lineage. Raises `UnknownVersion`."""
        return quarantine.verify(self.folders.existing(number), number, lambda parent: self.version(parent).fingerprint)

    def quarantined(self) -> list[QuarantinedVersion]:
        """Every version that a recovery ever took out. An edit that was acknowledged as applied in one is to be made again."""
        return quarantine.quarantined_versions(self.folders, self.index)

    def export(self, number: int, directory: str | Path) -> Path:
        """Version `number` as a plain Hugging Face checkpoint, in the base model's own dtype.

        Raises `ValueError` if `directory` exists and is not empty, `UnknownVersion`.
        """
        return export(self.base, self.segments(number), directory)

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """One writer at a time, whichever process it is in."""
        with hold(self.directory / "lock", wait_s=math.inf):
            yield
