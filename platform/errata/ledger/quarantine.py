"""Damaged versions, and the checks that find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from errata.delta.kinds import load_delta
from errata.edit import Edit
from errata.ledger.entry import DELTA, child_fingerprint, edits_left, faults, read_entry
from errata.ledger.folders import Folders
from errata.ledger.index import Index


@dataclass(frozen=True)
class QuarantinedVersion:
    """A damaged version that a recovery moved to `path`, with its faults, and its edits as far as they can be read.

    `was_live`: the head descended from it at the time. If not, a rollback had already taken its edits back.
    """

    number: int
    faults: tuple[str, ...]
    edits: tuple[Edit, ...]
    path: Path
    was_live: bool = True


def verify(folder: Path, number: int, fingerprint_of: Callable[[int], str]) -> list[str]:
    """Return the faults of the version in `folder`, none if it is whole.

    A fault is a file that is missing, truncated or changed, or a fingerprint that does not follow from the parent's, which
    `fingerprint_of` looks up.
    """
    found = list(faults(folder))
    if not found and number:
        entry, delta = read_entry(folder), load_delta(folder / DELTA)
        if child_fingerprint(fingerprint_of(entry["parent"] or 0), delta) != entry["fingerprint"]:
            found.append(f"its fingerprint is not that of its delta after version {entry['parent']}")
    return found


def quarantined_versions(folders: Folders, index: Index) -> list[QuarantinedVersion]:
    """Return every version that a recovery quarantined, oldest first."""
    found = []
    for number in folders.quarantined_numbers():
        path, (faults, was_live) = folders.quarantine_path(number), folders.read_note(number)
        found.append(QuarantinedVersion(number, faults, index.edits(number) or edits_left(path), path, was_live))
    return found
