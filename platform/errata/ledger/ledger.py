"""The ledger: an append-only chain of versions on disk, each with a delta, the editor's state after it, edits and a scorecard.

A version is written under a temporary name, synced and renamed, so that a crash leaves a whole version or none. Version 0 is
the unedited model. Weights and editor state belong to one version, so a rollback takes both back. Reading needs no lock; one
writer at a time holds `lock`. A version never changes, which is why everything read may be kept.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from errata.delta.kinds import Delta, split_by_kind
from errata.delta.memory_delta import held_after
from errata.durable import append_record, new_folder, records, records_from
from errata.edit import Edit, EditRejected
from errata.edit_memory.bank import Bank
from errata.editors.state import EditorState
from errata.ledger import entry as entries
from errata.ledger import quarantine
from errata.ledger.base_model import check_base
from errata.ledger.chain import Chain
from errata.ledger.editor_states import new_rows
from errata.ledger.entry import (
    DELTA,
    ENTRY,
    STATE,
    HeadMoved,
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
from errata.ledger.snapshots import Snapshots
from errata.locks import hold

MAX_LATE = 5
REFUSALS = "refusals.jsonl"
LEFT_OUT_OF_REFUSALS = ("rephrasings", "aliases", "messages", "locality", "portability")  # A post may fill a MiB with them.
BASE = ("model", "fingerprint", "matrices")


class Ledger:
    """A ledger directory. `Ledger.create` makes one, `Ledger.open` opens it in any process.

    Every `snapshot_every` versions their deltas are also written into one file, so that version N is read from about
    N / `snapshot_every` files. A snapshot keeps the deltas apart, so the sum of the weights has the same bits either way. It is
    written by an append or, with `snapshots_later`, by `snapshot`, unless `MAX_LATE` times as many versions lack one.

    A version that was read is kept, with its edits; with `max_kept`, for a reader that asks for few of them, only the last so
    many, and of all others the parent.
    """

    def __init__(self, directory: str | Path, snapshot_every: int = 20, max_kept: int | None = None) -> None:
        self.directory, self.snapshot_every, self.max_kept = Path(directory), snapshot_every, max_kept
        self.snapshots_later = False
        self.folders, self.snapshots = Folders(self.directory / "versions"), Snapshots(self.directory / "snapshots")
        self.head_record, self.index = Head(self.directory), Index(self.directory / "index")
        self._keeping = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Drop everything that was read. Needed after a change that is not an append."""
        self._versions: OrderedDict[int, Version] = OrderedDict()  # The last one asked for is at the end.
        self._edit_index, self._live = EditIndex(), (0, frozenset({0}))
        self._on_disk: tuple[tuple[int, ...], str] = (), ""
        self.contents = Chain(self.folders, self.snapshots, self.version)
        self.index.forget()

    @classmethod
    def create(cls, directory: str | Path, base: Mapping[str, Any], snapshot_every: int = 20) -> Ledger:
        """Make a ledger over `base`, {"model": path, "fingerprint": str, "matrices": [names]}, or open the one that exists.

        Raises `ValueError` if `base` lacks a field, or if the existing ledger is over another base.
        """
        base = {**base, "matrices": list(base.get("matrices", ())), "model": str(base.get("model", ""))}
        if missing := [key for key in BASE if not base.get(key)]:
            raise ValueError(f"the base of a ledger needs {', '.join(missing)}")
        ledger = cls(directory, snapshot_every)
        for folder in ("versions", "snapshots"):
            (ledger.directory / folder).mkdir(parents=True, exist_ok=True)
        with ledger.only_writer():
            if not ledger.folders.path(0).exists():
                with new_folder(ledger.folders.path(0)) as folder_0:
                    written = entries.write_entry(folder_0, {**entries.new_entry(0, None, base["fingerprint"]), "base": base})
                ledger.index.add(written, ())
        check_base(directory, ledger.base, {name: base[name] for name in BASE})
        return ledger

    @classmethod
    def open(cls, directory: str | Path, snapshot_every: int = 20, max_kept: int | None = None) -> Ledger:
        """Open an existing ledger. Raises `FileNotFoundError` if there is none."""
        ledger = cls(directory, snapshot_every, max_kept)
        if not (ledger.folders.path(0) / ENTRY).exists():
            raise FileNotFoundError(f"there is no ledger in {directory}")
        return ledger

    @property
    def base(self) -> dict[str, Any]:
        """The base model as `create` was given it."""
        return cast(dict[str, Any], entries.read_entry(self.folders.path(0))["base"])

    @property
    def newest(self) -> int:
        """The highest version number."""
        return self.folders.newest

    @property
    def next_number(self) -> int:
        """The number of the next version: the lowest that no version ever had here."""
        return self.folders.next_number

    @property
    def head(self) -> int:
        """The version to serve: the newest, unless the head was moved after the newest was written."""
        return self.head_at()[1]

    def head_at(self) -> tuple[int, int]:
        """Return the head's epoch and the head.

        The epoch grows with every append and every move of the head and never falls, so that of two heads that were read, the
        one with the lower epoch is the older one.
        """
        moved = self.head_record.last()
        newest = self.newest
        return moved["moves"] + self.folders.next_number - 1, newest if newest > moved["after"] else moved["version"]

    def head_before(self, number: int) -> int | None:
        """Return the head at which `number` was appended; None if the head was moved since, and for version 0."""
        moved = self.head_record.last()
        if number <= max(0, moved["after"]):
            return None
        before = max(other for other in self.folders.numbers() if other < number)
        return before if before > moved["after"] else moved["version"]

    def head_log(self) -> Iterator[dict[str, Any]]:
        """Iterate over the moves of the head, oldest first: {"version", "after", "before", "time", "by"}.

        A move that retracted a version also has its number as "withdrawn".
        """
        return self.head_record.entries()

    def version(self, number: int) -> Version:
        """Read a version. Raises `UnknownVersion`, or `LedgerDamaged` if it cannot be read."""
        version = self._versions.get(number)
        if version is None:
            path = self.folders.existing(number)
            version = self.index.find(number, path) or entries.read_version(path)
        self._keep(version)
        return version

    def _keep(self, version: Version) -> None:
        """Keep a version as the last one that was asked for, and drop the first beyond `max_kept`. Threads share a ledger."""
        if self.max_kept is None:
            self._versions[version.number] = version
            return
        with self._keeping:
            self._versions[version.number] = version
            self._versions.move_to_end(version.number)
            while len(self._versions) > self.max_kept:
                self._versions.popitem(last=False)

    def fingerprint_on_disk(self, number: int) -> str:
        """Return the fingerprint that the disk has for a version now. Raises `UnknownVersion`, `LedgerDamaged`, `OSError`.

        A file server that loses power may lose the newest version, whose number is then used again: what was read of the
        first one is dropped.
        """
        path = self.folders.existing(number)
        entry = (path / ENTRY).stat()
        mark = number, entry.st_ino, entry.st_mtime_ns, entry.st_size
        if self._on_disk[0] != mark:
            fingerprint = entries.read_entry(path)["fingerprint"]
            if (kept := self._versions.get(number)) is not None and kept.fingerprint != fingerprint:
                self.forget()
            self._on_disk = mark, fingerprint
        return self._on_disk[1]

    def versions(self) -> list[Version]:
        """Return all versions that can be read, version 0 first, those outside the live chain included."""
        return list(self.newest_first())[::-1]

    def newest_first(self, before: int | None = None) -> Iterator[Version]:
        """Iterate over the versions that can be read, the newest first, or from below number `before` on."""
        for number in reversed(self.folders.numbers()):
            if (before is None or number < before) and (version := self._readable(number)):
                yield version

    def _readable(self, number: int) -> Version | None:
        with contextlib.suppress(LedgerDamaged, UnknownVersion):
            return self.version(number)
        return None

    def chain(self, number: int) -> list[int]:
        """Return the versions whose deltas make `number`, in order, without version 0."""
        return self.contents.numbers(number)

    def delta(self, number: int) -> Delta:
        """Read the delta of one version. Raises `LedgerDamaged` if it does not match the version's fingerprint."""
        return self.contents.delta(number)

    def state(self, number: int) -> EditorState | None:
        """Read the editor's state after `number`; None for version 0, which no editor made. Raises `LedgerDamaged`."""
        return self.contents.state(number)

    def files_to(self, number: int, snapshots: bool = True) -> list[Path]:
        """Return the files that make version `number` from the base: `read_segments` of each, in order, is `segments(number)`.

        Without `snapshots`, for a reader that found one damaged, they are the versions' own files, with the same bits.
        """
        return self.contents.files(number, snapshots)

    def segments(self, number: int) -> list[Delta]:
        """Read the deltas to sum onto the base, in order. Raises `LedgerDamaged`."""
        return self.contents.deltas(number)

    def memory(self, number: int) -> Bank | None:
        """Return the records that version `number` keeps beside the weights; None if it has none. Raises `LedgerDamaged`."""
        bank = held_after(split_by_kind(self.segments(number))[1])
        return bank if bank is not None and len(bank) else None

    def append(
        self,
        parent: int,
        delta: Delta,
        state: EditorState,
        edits: Iterable[Edit],
        scorecard: Mapping[str, Any],
        origin: Origin,
        expected_head: int | None = None,
    ) -> Version:
        """Add a version that follows `parent`, and make it the head. `origin` is (editor, plan).

        `parent` is the head, unless the version branches off earlier: `expected_head` is then the head that it was made for.
        Raises `LedgerConflict` if the head is not `expected_head` (by default `parent`), and `UnknownVersion` if there is no
        `parent`. After any other failure the ledger is unchanged, except that a number which readers may have seen is not
        used again.
        """
        expected, edits = parent if expected_head is None else expected_head, tuple(edits)
        with self.only_writer():
            if expected != self.head:
                raise LedgerConflict(expected, self.head)
            fingerprint = child_fingerprint(self.version(parent).fingerprint, delta)
            rows = new_rows(state, self.state(parent) or EditorState())
            # The snapshot comes before the version, so that a failure here leaves no version behind.
            self.contents.snapshot_if_due(parent, self.snapshot_every * (MAX_LATE if self.snapshots_later else 1))
            number = self.folders.next_number
            path = self.folders.path(number)
            entry = entries.new_entry(number, parent, fingerprint, origin, scorecard, delta)
            with self._number_used_once(number), new_folder(path, self.folders.quarantine_path(number)) as folder:
                entries.write_tensors(folder / DELTA, delta.to_tensors())
                rows.save(folder / STATE)
                entries.write_edits(folder, edits)
                written = entries.write_entry(folder, entry)
                version = entries.as_written(written, edits, path)
            self.contents.keep(number, state)
            self._keep(version)
            with contextlib.suppress(OSError):  # A version without its line in the index is read from its folder.
                self.index.add(written, edits)
        return version

    def snapshot(self) -> None:
        """Write the snapshot that ends at the head, if it is due. Raises `OSError`, `LedgerDamaged`; nothing changes then."""
        with self.only_writer():
            self.contents.snapshot_if_due(self.head, self.snapshot_every)

    @contextmanager
    def _number_used_once(self, number: int) -> Iterator[None]:
        """Note why a version that readers may have seen was quarantined, so that its number is not used again."""
        try:
            yield
        except OSError as fault:
            if self.folders.quarantine_path(number).exists():
                with contextlib.suppress(OSError):
                    self.folders.write_note(number, [f"it could not be made durable: {fault}"], was_live=False)
            raise

    def move_head(self, number: int, by: str = "", expected_head: int | None = None) -> None:
        """Make `number` the head. Nothing is deleted; the next version follows `number`.

        `by` is the author, for the head log. A failure leaves the head where it is. Raises `UnknownVersion`, `LedgerDamaged` if
        the files of `number` are not as they were written, and `HeadMoved` if the head is not `expected_head`.
        """
        self._check_whole(number)
        with self.only_writer():
            before = self.head
            if expected_head is not None and expected_head != before:
                raise HeadMoved(expected_head, before)
            if before != number:
                self.head_record.move(number, self.newest, before, by)

    def retract(self, number: int, to: int, by: str = "") -> None:
        """Take back a version that no replica can load: the head becomes `to`, and `find_edit` never returns `number`.

        Called right after the append; the edits are then made again, in another version. A failure leaves the head where it
        is. Raises `UnknownVersion`, `LedgerDamaged` as `move_head`, and `ValueError` if `to` descends from `number`.
        """
        self.version(number)
        if number in (0, *self.chain(to)):
            raise ValueError(f"version {number} cannot be retracted: version {to}, the head to go back to, descends from it")
        self._check_whole(to)
        with self.only_writer():
            self.head_record.move(to, self.newest, self.head, by, number)

    def retracted(self) -> frozenset[int]:
        """Return the versions that were taken back by `retract`."""
        return self.head_record.retracted()

    def _check_whole(self, number: int) -> None:
        if faults := self.verify(number):
            raise damaged(self.folders.path(number), "; ".join(faults))

    def edits(self, number: int) -> Iterator[Edit]:
        """Iterate over the edits of every version that makes `number`, in order."""
        for ancestor in self.chain(number):
            yield from self.version(ancestor).edits

    def refuse(self, parent: int, edit: Edit, refusal: EditRejected, says: str | None = None) -> None:
        """Log an edit that was refused at version `parent`, which `says` another answer. No version changes.

        What the refusal itself says takes precedence: it is the answer of the edited model.
        """
        short = {name: part for name, part in edit.to_json().items() if name not in LEFT_OUT_OF_REFUSALS}
        record = {"time": entries.utc_now(), "parent": parent, "edit": short, "reason": refusal.reason}
        record |= {"code": refusal.code.value, "field": refusal.field, "scores": getattr(refusal, "scores", {})}
        if (answer := says if refusal.says is None else refusal.says) is not None:
            record["says"] = answer
        with self.only_writer():
            append_record(self.directory / REFUSALS, record)

    def refusals(self) -> Iterator[dict[str, Any]]:
        """Iterate over the refused edits, oldest first.

        Each is {"time", "parent", "edit", "reason", "code", "field", "scores"} and, where the model was asked, "says". The
        edit is without its lists: rephrasings, aliases, earlier messages and probes.
        """
        return records(self.directory / REFUSALS)

    def refusals_from(self, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Iterate over the refused edits from a byte of their log on, each with the byte behind it."""
        return records_from(self.directory / REFUSALS, offset)

    @property
    def refusal_bytes(self) -> int:
        """The size of the log of refused edits."""
        path = self.directory / REFUSALS
        return path.stat().st_size if path.exists() else 0

    def find_edit(self, edit_id: str) -> int | None:
        """Return the version that made the edit with this id: the newest in the live chain, otherwise the newest at all.

        Versions that were retracted or cannot be read are left out.
        """
        if not (found := self._edit_index.of(edit_id, self.newest, self._readable)):
            return None
        live = self.live()
        return max(set(found) - self.retracted(), key=lambda number: (number in live, number), default=None)

    def live(self) -> frozenset[int]:
        """Return the versions of the live chain, version 0 included."""
        if (head := self.head) != self._live[0]:
            self._live = head, frozenset((0, *self.chain(head)))
        return self._live[1]

    def verify(self, number: int) -> list[str]:
        """Return the faults of a version: files missing, truncated, changed, or of another lineage. Raises `UnknownVersion`."""
        return quarantine.verify(self.folders.existing(number), number, lambda parent: self.version(parent).fingerprint)

    def quarantined(self) -> list[QuarantinedVersion]:
        """Return every version that a recovery quarantined. Edits that were applied in one of them have to be made again."""
        return quarantine.quarantined_versions(self.folders, self.index)

    def export(self, number: int, directory: str | Path) -> Path:
        """Write version `number` as a plain Hugging Face checkpoint, in the base model's dtype, without its memory.

        Raises `ValueError` if `directory` exists and is not empty, `UnknownVersion`.
        """
        return export(self.base, self.segments(number), directory)

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Hold the ledger's lock, which one process has at a time."""
        with hold(self.directory / "lock", wait_s=math.inf):
            yield
