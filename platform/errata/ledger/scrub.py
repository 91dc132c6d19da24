"""Scrub of a ledger: every file of every version and snapshot against its digests, those included that no process reads.

Damage in the middle of the chain would otherwise be found at a restart, which it stops. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from errata.ledger.entry import LedgerDamaged, UnknownVersion
from errata.ledger.ledger import Ledger


def scrub(directory: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every version and snapshot by name with its faults, none if it is whole. Raises `FileNotFoundError`.

    The ledger may be in use; what is appended meanwhile is left out. A new reader is opened, since one keeps what it has read.
    """
    ledger = Ledger.open(directory)
    for number in ledger.folders.numbers():
        try:
            yield f"version {number}", ledger.verify(number)
        except (UnknownVersion, LedgerDamaged) as damage:  # Its parent may be damaged, too.
            yield f"version {number}", [str(damage)]
    snapshots = (path for path in ledger.snapshots.folder.glob("[0-9]*.safetensors") if not path.stem.endswith(".state"))
    for number in sorted(int(path.stem) for path in snapshots):
        yield f"the snapshot up to version {number}", _snapshot_faults(ledger, number)


def _snapshot_faults(ledger: Ledger, number: int) -> list[str]:
    """Return the faults of a snapshot, which the next start rebuilds from the versions' own files."""
    found = []
    try:
        if ledger.contents.snapshot_deltas(number) is None:
            found.append(f"{ledger.snapshots.path(number)} is not as it was written")
    except (UnknownVersion, LedgerDamaged) as damage:
        found.append(f"it cannot be compared: {damage}")
    has_state_file = ledger.snapshots.state_path(number).exists()  # Snapshots of the first format have none.
    if has_state_file and not ledger.snapshots.holds_state(number):
        found.append(f"{ledger.snapshots.state_path(number)} is not as it was written")
    return found
