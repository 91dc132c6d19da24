"""What the one writer does before it starts: see whether what is on disk is what was written, and mend it.

A damaged newest version is set aside, not deleted, and the head falls back to where it was before it; its edits are named, so
that they can be made again. Snapshots and the index follow from the versions and are made again. What is damaged in the middle
of the live chain cannot be mended here, and is an error that names it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from errata.durable import TEMPORARY
from errata.ledger.entry import LedgerDamaged, UnknownVersion, edits_left
from errata.ledger.head import NEVER
from errata.ledger.ledger import Ledger
from errata.ledger.quarantine import QuarantinedVersion


@dataclass(frozen=True)
class Recovered:
    """What `recover` found. `head` is the head after it; `notes` say what else was mended or passed over.

    `quarantined` are those of this call; `Ledger.quarantined` tells all of them again, to a caller that was stopped in between.
    """

    head: int
    quarantined: tuple[QuarantinedVersion, ...] = ()
    notes: tuple[str, ...] = ()


def recover(ledger: Ledger) -> Recovered:
    """Find and mend what a crash or the disk did, for the one writer, before it starts.

    Raises `LedgerDamaged` about what cannot be mended.
    """
    with ledger.only_writer():
        return _recover(ledger)


def _recover(ledger: Ledger) -> Recovered:
    ledger.forget()
    notes = [note for note in (_leftovers(ledger), *_logs(ledger)) if note]
    gone = [_mark_missing(ledger, number) for number in _missing(ledger)]
    gone += _set_aside_damaged(ledger)
    ledger.forget()
    notes += _mend_head(ledger)
    notes += _mend_snapshots(ledger)
    mended, unreadable = ledger.index.mend(ledger.folders.numbers(), ledger.folders.path)
    if mended:
        notes.append(f"the index lacked {len(mended)} versions and has them again")
    notes += [f"not in the live chain, left as it is: {damage}" for damage in unreadable]
    return Recovered(ledger.head, tuple(gone), tuple(notes))


def _leftovers(ledger: Ledger) -> str:
    count = ledger.folders.clear()
    for folder in (ledger.directory, ledger.snapshots.folder):
        for left in folder.glob(f"{TEMPORARY}*"):
            left.unlink()
            count += 1
    return f"removed {count} half-written files of a writer that was stopped" if count else ""


def _logs(ledger: Ledger) -> list[str]:
    notes = []
    for path, found in ((ledger.heads.log, ledger.head_log()), (ledger.directory / "refusals.jsonl", ledger.refusals())):
        written = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n")) if path.exists() else 0
        if lost := written - sum(1 for _ in found):
            notes.append(f"{lost} lines of {path.name} cannot be read and are passed over")
    return notes


def _missing(ledger: Ledger) -> list[int]:
    """Numbers that were used, after the newest version that is there."""
    moved = NEVER
    with contextlib.suppress(ValueError):
        moved = ledger.heads.read() or NEVER
    last = max(moved["after"], ledger.index.newest)
    return [n for n in range(ledger.newest + 1, last + 1) if not ledger.folders.quarantine_path(n).exists()]


def _mark_missing(ledger: Ledger, number: int) -> QuarantinedVersion:
    path, faults, was_live = ledger.folders.quarantine_path(number), ("its folder is missing",), _is_live(ledger, number)
    ledger.folders.write_note(number, faults, was_live)
    path.mkdir()
    return QuarantinedVersion(number, faults, ledger.index.edits(number), path, was_live)


def _set_aside_damaged(ledger: Ledger) -> list[QuarantinedVersion]:
    """The newest version and the head, until both are whole."""
    gone: list[QuarantinedVersion] = []
    while True:
        suspects = {ledger.newest, _nearest(ledger, ledger.head)}
        found = {number: wrong for number in suspects if (wrong := ledger.verify(number))}
        if not found:
            return gone
        number = max(found)
        children = [n for n in ledger.folders.numbers() if n > number and _parent(ledger, n) == number]
        if number == 0 or children:
            after = f", and versions {children} follow it" if children else ""
            raise LedgerDamaged(
                f"version {number} is damaged{after}: {'; '.join(found[number])}. Bring {ledger.folders.path(number)} back "
                "from a copy, or move the head to a version that does not come from it, with Ledger.move_head"
            )
        folder, path = ledger.folders.path(number), ledger.folders.quarantine_path(number)
        edits, was_live = ledger.index.edits(number) or edits_left(folder), _is_live(ledger, number)
        ledger.folders.write_note(number, found[number], was_live)
        folder.rename(path)
        ledger.forget()
        gone.append(QuarantinedVersion(number, tuple(found[number]), edits, path, was_live))


def _is_live(ledger: Ledger, number: int) -> bool:
    """Whether the head comes from a version; one that is gone was the head itself, if it was made after the last move."""
    ancestor = number if number > max(ledger.heads.last()["after"], ledger.newest) else ledger.head
    while ancestor > number:
        ancestor = _parent(ledger, ancestor)
    return ancestor == number


def _parent(ledger: Ledger, number: int) -> int:
    """Where neither the version nor its line in the index can be read, it is taken to be the one before."""
    with contextlib.suppress(LedgerDamaged, UnknownVersion):
        return ledger.version(number).parent or 0
    return ledger.index.parent(number, default=number - 1)


def _nearest(ledger: Ledger, number: int) -> int:
    """The version itself, or where it is gone the nearest before it that is there: its parent as far as that is known."""
    while not ledger.folders.path(number).is_dir():
        number = ledger.index.parent(number, default=min(number - 1, ledger.newest))
    return number


def _mend_head(ledger: Ledger) -> list[str]:
    try:
        moved, why = ledger.heads.read(), ""
    except ValueError as wrong:
        moved, why = None, f"HEAD cannot be read ({wrong})"
    if moved is None and not why and ledger.heads.logged() is not NEVER:
        why = "HEAD is missing, though the head was moved"
    head = ledger.head
    if (nearest := _nearest(ledger, head)) != head:
        why = f"the head was moved to version {head}, which is not there"
    elif (last := ledger.heads.logged()).get("withdrawn") == head:
        why, nearest = f"version {head} was being withdrawn", last["version"]
    if not why:
        return []
    ledger.heads.move(nearest, ledger.folders.next_number - 1, head, "recovery")
    return [f"{why}; the head is now version {nearest}"]


def _mend_snapshots(ledger: Ledger) -> list[str]:
    """Those of the live chain. Raises `LedgerDamaged` if a version that has to be read for it is damaged itself."""
    notes = []
    chain = ledger.chain(ledger.head)
    since: list[int] = []
    for number in chain:
        since.append(number)
        if not ledger.snapshots.path(number).exists():
            continue
        older = not ledger.snapshots.state_path(number).exists()
        if ledger.joined(number) is None or not (older or ledger.snapshots.holds_state(number)):
            moved = ledger.snapshots.quarantine(number)
            ledger.join(since)
            notes.append(f"the snapshot up to version {number} was damaged; it is made again, {', '.join(map(str, moved))}")
        since = []
    return notes
