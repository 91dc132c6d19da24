"""Where the versions are: a folder each, by number. A damaged one is set aside, and its number never used again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from errata.durable import TEMPORARY, replaced, with_checksum, without_checksum
from errata.ledger.entry import UnknownVersion
from errata.ledger.snapshots import CORRUPT


class Folders:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._newest = -1

    def path(self, number: int) -> Path:
        return self.root / f"{number:08d}"

    def quarantine_path(self, number: int) -> Path:
        """Where a version is put that is damaged."""
        return self.root / f"{number:08d}{CORRUPT}"

    def _note_path(self, number: int) -> Path:
        return self.root / f"{number:08d}{CORRUPT}.json"

    def write_note(self, number: int, faults: Sequence[str], was_live: bool) -> None:
        """Why a version is put there, and whether it was part of the head; first the note, so that none is there without."""
        with replaced(self._note_path(number)) as file:
            file.write_text(json.dumps(with_checksum({"faults": list(faults), "was_live": was_live})))

    def read_note(self, number: int) -> tuple[tuple[str, ...], bool]:
        """Faults, and whether it was live: without a note that can be read, of nothing known it was."""
        try:
            note = without_checksum(self._note_path(number).read_bytes())
            return tuple(map(str, note["faults"])), bool(note["was_live"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return (), True

    def numbers(self) -> list[int]:
        """Of all versions, version 0 first, without those that were set aside."""
        return sorted(int(name) for name in os.listdir(self.root) if name.isdigit())

    def quarantined_numbers(self) -> list[int]:
        return sorted(int(path.name[:8]) for path in self.root.glob(f"*{CORRUPT}"))

    @property
    def newest(self) -> int:
        """Versions are numbered one by one: to see whether there is another, nothing is listed."""
        if self._newest < 0 or not self.path(self._newest).is_dir():
            self._newest = self.numbers()[-1]
        number = self._newest + 1
        while (is_there := self.path(number).is_dir()) or self.quarantine_path(number).is_dir():
            self._newest = number if is_there else self._newest
            number += 1
        return self._newest

    @property
    def next_number(self) -> int:
        number = self.newest + 1
        while self.quarantine_path(number).exists():
            number += 1
        return number

    def clear(self) -> int:
        """Remove what killed writers left half-made; returns how many that were. For the one who holds the lock."""
        left = list(self.root.glob(f"{TEMPORARY}*"))
        for leftover in left:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return len(left)

    def existing(self, number: int) -> Path:
        """The folder of a version. Raises `UnknownVersion` if it is not there."""
        if number >= 0 and self.path(number).is_dir():
            return self.path(number)
        if number >= 0 and self.quarantine_path(number).exists():
            aside = self.quarantine_path(number)
            raise UnknownVersion(f"version {number} was damaged and was set aside as {aside}; its number is not used again")
        raise UnknownVersion(f"there is no version {number}; the newest is {self.newest}")
