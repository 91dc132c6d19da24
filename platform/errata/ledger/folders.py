"""The folders of the versions, by number. A damaged version is quarantined, and its number is never used again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from errata.durable import replaced, with_checksum, without_checksum
from errata.ledger.entry import UnknownVersion
from errata.ledger.snapshots import CORRUPT


class Folders:
    """The folder `root` with one folder for each version."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._newest = -1

    def path(self, number: int) -> Path:
        """Return the folder of a version, which may not exist."""
        return self.root / f"{number:08d}"

    def quarantine_path(self, number: int) -> Path:
        """Return the folder that a damaged version is moved to."""
        return self.root / f"{number:08d}{CORRUPT}"

    def _note_path(self, number: int) -> Path:
        return self.root / f"{number:08d}{CORRUPT}.json"

    def write_note(self, number: int, faults: Sequence[str], was_live: bool) -> None:
        """Write why a version is quarantined, and whether it was live. The note precedes the move, so that none is missing."""
        with replaced(self._note_path(number)) as file:
            file.write_text(json.dumps(with_checksum({"faults": list(faults), "was_live": was_live})))

    def read_note(self, number: int) -> tuple[tuple[str, ...], bool]:
        """Read the faults of a quarantined version, and whether it was live. If the note is unreadable, assume that it was."""
        try:
            note = without_checksum(self._note_path(number).read_bytes())
            return tuple(map(str, note["faults"])), bool(note["was_live"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return (), True

    def numbers(self) -> list[int]:
        """List all versions, version 0 first, without those in quarantine."""
        return sorted(int(name) for name in os.listdir(self.root) if name.isdigit())

    def quarantined_numbers(self) -> list[int]:
        """List the versions in quarantine."""
        return sorted(int(path.name[:8]) for path in self.root.glob(f"*{CORRUPT}"))

    @property
    def newest(self) -> int:
        """The highest version number. Numbers are consecutive, so looking for a newer version needs no listing."""
        if self._newest < 0 or not self.path(self._newest).is_dir():
            self._newest = self.numbers()[-1]
        number = self._newest + 1
        while (exists := self.path(number).is_dir()) or self.quarantine_path(number).is_dir():
            self._newest = number if exists else self._newest
            number += 1
        return self._newest

    @property
    def next_number(self) -> int:
        """The number of the next version."""
        number = self.newest + 1
        while self.quarantine_path(number).exists():
            number += 1
        return number

    def existing(self, number: int) -> Path:
        """Return the folder of a version. Raises `UnknownVersion` if it does not exist."""
        if number >= 0 and self.path(number).is_dir():
            return self.path(number)
        if number >= 0 and self.quarantine_path(number).exists():
            path = self.quarantine_path(number)
            raise UnknownVersion(f"version {number} was damaged and is quarantined as {path}; its number is not used again")
        raise UnknownVersion(f"there is no version {number}; the newest is {self.newest}")
