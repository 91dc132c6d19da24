"""Recovery: the one writer checks the ledger before it starts, and repairs what a crash or the disk damaged.

A damaged newest version is quarantined, and the head falls back to where it was before it; its edits are listed, so that they
can be made again. Snapshots and the index are rebuilt from the versions. Damage in the middle of the live chain cannot be
repaired here and raises an error that names the version.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from errata.durable import remove_temporary
from errata.ledger.entry import LedgerDamaged, UnknownVersion, edits_left
from errata.ledger.head import NEVER
from errata.ledger.ledger import REFUSALS, Ledger
from errata.ledger.quarantine import QuarantinedVersion


@dataclass(frozen=True)
class Recovered:
    """The result of a recovery: the head after it, the versions that it quarantined, and `notes` on all other repairs.

    A caller that died before it handled `quarantined` finds the same versions again in `Ledger.quarantined`.
    """

    head: int
    quarantined: tuple[QuarantinedVersion, ...] = ()
    notes: tuple[str, ...] = ()


def recover(ledger: Ledger) -> Recovered:
    """Find and repair damage before the one writer starts. Raises `LedgerDamaged` for damage that cannot be repaired."""
    with ledger.only_writer():
        return _recover(ledger)


def _recover(ledger: Ledger) -> Recovered:
    ledger.forget()
    notes = [note for note in (_leftovers(ledger), *_logs(ledger)) if note]
    quarantined = [_mark_missing(ledger, number) for number in _missing(ledger)]
    quarantined += _quarantine_damaged(ledger)
    ledger.forget()
    notes += _repair_head(ledger)
    notes += _repair_snapshots(ledger)
    added, unreadable = ledger.index.repair(ledger.folders.numbers(), ledger.folders.path)
    if added:
        notes.append(f"the index lacked {len(added)} versions, which were added")
    notes += [f"left unchanged, because it is not in the live chain: {damage}" for damage in unreadable]
    return Recovered(ledger.head, tuple(quarantined), tuple(notes))


def _leftovers(ledger: Ledger) -> str:
    count = sum(map(remove_temporary, (ledger.directory, ledger.folders.root, ledger.snapshots.folder)))
    return f"removed {count} half-written files of a writer that was stopped" if count else ""


def _logs(ledger: Ledger) -> list[str]:
    notes = []
    for path, found in ((ledger.head_record.log, ledger.head_log()), (ledger.directory / REFUSALS, ledger.refusals())):
        written = _num_lines(path)
        if lost := written - sum(1 for _ in found):
            notes.append(f"{lost} lines of {path.name} cannot be read and are skipped")
    return notes


def _num_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as log:
        return sum(bool(line.strip()) for line in log)


def _missing(ledger: Ledger) -> list[int]:
    """Return the numbers that were used after the newest version that exists."""
    moved = NEVER
    with contextlib.suppress(ValueError):
        moved = ledger.head_record.read() or NEVER
    last = max(moved["after"], ledger.index.newest)
    return [n for n in range(ledger.newest + 1, last + 1) if not ledger.folders.quarantine_path(n).exists()]


def _mark_missing(ledger: Ledger, number: int) -> QuarantinedVersion:
    path, faults, was_live = ledger.folders.quarantine_path(number), ("its folder is missing",), _is_live(ledger, number)
    ledger.folders.write_note(number, faults, was_live)
    path.mkdir()
    return QuarantinedVersion(number, faults, ledger.index.edits(number), path, was_live)


def _quarantine_damaged(ledger: Ledger) -> list[QuarantinedVersion]:
    """Quarantine the newest version and the head, until both are whole."""
    quarantined: list[QuarantinedVersion] = []
    while True:
        suspects = {ledger.newest, _nearest(ledger, ledger.head)}
        found = {number: wrong for number in suspects if (wrong := ledger.verify(number))}
        if not found:
            return quarantined
        number = max(found)
        children = [n for n in ledger.folders.numbers() if n > number and _parent(ledger, n) == number]
        if number == 0 or children:
            after = f", and versions {children} follow it" if children else ""
            raise LedgerDamaged(
                f"version {number} is damaged{after}: {'; '.join(found[number])}. Restore {ledger.folders.path(number)} from a "
                "backup, or move the head to a version that does not descend from it, with Ledger.move_head"
            )
        folder, path = ledger.folders.path(number), ledger.folders.quarantine_path(number)
        edits, was_live = ledger.index.edits(number) or edits_left(folder), _is_live(ledger, number)
        ledger.folders.write_note(number, found[number], was_live)
        folder.rename(path)
        ledger.forget()
        quarantined.append(QuarantinedVersion(number, tuple(found[number]), edits, path, was_live))


def _is_live(ledger: Ledger, number: int) -> bool:
    """Return True if the head descends from a version. A missing version was the head if it came after the last move."""
    ancestor = number if number > max(ledger.head_record.last()["after"], ledger.newest) else ledger.head
    while ancestor > number:
        ancestor = _parent(ledger, ancestor)
    return ancestor == number


def _parent(ledger: Ledger, number: int) -> int:
    """Return the parent; if neither the version nor its line in the index can be read, the version before it."""
    with contextlib.suppress(LedgerDamaged, UnknownVersion):
        return ledger.version(number).parent or 0
    return ledger.index.parent(number, default=number - 1)


def _nearest(ledger: Ledger, number: int) -> int:
    """Return the version, or if it is missing its nearest ancestor that exists, as far as parents are known."""
    while not ledger.folders.path(number).is_dir():
        number = ledger.index.parent(number, default=min(number - 1, ledger.newest))
    return number


def _repair_head(ledger: Ledger) -> list[str]:
    try:
        moved, why = ledger.head_record.read(), ""
    except ValueError as wrong:
        moved, why = None, f"HEAD cannot be read ({wrong})"
    if moved is None and not why and ledger.head_record.logged() is not NEVER:
        why = "HEAD is missing, although the head was moved"
    head = ledger.head
    if (nearest := _nearest(ledger, head)) != head:
        why = f"the head was moved to version {head}, which does not exist"
    elif (last := ledger.head_record.logged()).get("withdrawn") == head:
        why, nearest = f"version {head} was being retracted", last["version"]
    if not why:
        return []
    ledger.head_record.move(nearest, ledger.folders.next_number - 1, head, "recovery")
    return [f"{why}; the head is now version {nearest}"]


def _repair_snapshots(ledger: Ledger) -> list[str]:
    """Rebuild damaged snapshots of the live chain. Raises `LedgerDamaged` if a version to be read for it is damaged itself."""
    notes = []
    since: list[int] = []
    for number in ledger.chain(ledger.head):
        since.append(number)
        if not ledger.snapshots.path(number).exists():
            continue
        has_state_file = ledger.snapshots.state_path(number).exists()  # Snapshots of the first format have none.
        is_damaged = ledger.contents.snapshot_deltas(number) is None
        if is_damaged or (has_state_file and not ledger.snapshots.holds_state(number)):
            moved = ledger.snapshots.quarantine(number)
            ledger.contents.write_snapshot(since)
            names = ", ".join(map(str, moved))
            notes.append(f"the snapshot up to version {number} was damaged and is rebuilt; the old files are {names}")
        since = []
    return notes
