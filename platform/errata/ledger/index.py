"""The index: one line for each version with its entry and its edits, so that opening a ledger reads one file.

It is a cache: what is missing or damaged in it is read from the versions. Of each line only its place is kept in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from errata.durable import append_line, digest_of, replaced
from errata.edit import Edit
from errata.ledger.entry import LedgerDamaged, Version, as_version, read_entry, read_version
from errata.text.rules import cleaned


class Index:
    """Lines of "SHA-256 NUMBER JSON", of which the last with a number counts.

    They are looked for once, when first needed, and each is read and checked again when its version is asked for, because
    another process may have written the file again meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[int, tuple[int, int]] | None = None

    def forget(self) -> None:
        """Drop the places of the lines."""
        self._places = None

    @property
    def places(self) -> dict[int, tuple[int, int]]:
        """The places of the whole lines by version number, as first byte and length."""
        if self._places is None:
            self._places = dict(_whole_lines(self.path))
        return self._places

    @property
    def newest(self) -> int:
        """The highest number with a line, -1 without any."""
        return max(self.places, default=-1)

    def find(self, number: int, folder: Path) -> Version | None:
        """Return the version, if its line is whole."""
        found = self._record(number)
        return as_version(found["entry"], map(_edit, found["edits"]), folder) if found else None

    def edits(self, number: int) -> tuple[Edit, ...]:
        """Return the edits of a version, none if its line is missing."""
        found = self._record(number)
        return tuple(map(_edit, found["edits"])) if found else ()

    def parent(self, number: int, default: int) -> int:
        """Return the parent of a version, `default` if its line is missing."""
        found = self._record(number)
        return int(found["entry"]["parent"] or 0) if found else default

    def _record(self, number: int) -> dict[str, Any] | None:
        line = self._line(number)
        return json.loads(line.split(b" ", 2)[2]) if line else None

    def _line(self, number: int) -> bytes | None:
        """Read the line of a version, None if it is not there, or another one is there by now."""
        first, length = self.places.get(number, (0, 0))
        if not length:
            return None
        try:
            with self.path.open("rb") as file:
                file.seek(first)
                line = file.read(length)
        except FileNotFoundError:
            return None
        return line if _number_of(line) == number else None

    def add(self, entry: Mapping[str, Any], edits: Iterable[Edit]) -> None:
        """Append a line. Not synced, because a lost line is read from the version.

        Raises `OSError`; the index is then unchanged.
        """
        append_line(self.path, _line(entry, edits), synced=False)

    def repair(self, numbers: Iterable[int], folder_of: Callable[[int], Path]) -> tuple[list[int], list[LedgerDamaged]]:
        """Add the missing lines of `numbers`. Returns the versions added, and the damage of those that cannot be read."""
        self.forget()
        fresh, damages = {}, []
        for number in set(numbers) - set(self.places):
            try:
                fresh[number] = _line(read_entry(folder_of(number)), read_version(folder_of(number)).edits)
            except LedgerDamaged as damage:
                damages.append(damage)
        if fresh:
            with replaced(self.path) as file, file.open("wb") as index:
                for number in sorted({*self.places, *fresh}):
                    index.write((fresh.get(number) or self._line(number) or b"") + b"\n")
            self.forget()
        return sorted(fresh), damages


def _edit(data: dict[str, Any]) -> Edit:
    """Build an edit as `Edit.from_json` does, in a third of the time: the line's digest vouches for the types."""
    if not data.keys().isdisjoint(("locality", "portability", "messages")):
        return Edit.from_json(data)
    texts: dict[str, Any] = {name: cleaned(data[name]) for name in ("target", "subject", "answer") if name in data}
    if "aliases" in data:
        texts["aliases"] = tuple(map(cleaned, data["aliases"]))
    return Edit(**{**data, **texts, "rephrasings": tuple(data.get("rephrasings", ()))})


def _line(entry: Mapping[str, Any], edits: Iterable[Edit]) -> bytes:
    text = b"%d %s" % (entry["number"], json.dumps({"entry": entry, "edits": [edit.to_json() for edit in edits]}).encode())
    return f"{digest_of(text)} ".encode() + text


def _whole_lines(path: Path) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the number of each whole line with its place."""
    if not path.exists():
        return
    first = 0
    with path.open("rb") as file:
        for line in file:
            number = _number_of(stripped := line.removesuffix(b"\n"))
            if number is not None:
                yield number, (first, len(stripped))
            first += len(line)


def _number_of(line: bytes) -> int | None:
    """Return the number of a whole line, None if its digest is not that of its text."""
    digest, _, text = line.partition(b" ")
    return int(text.partition(b" ")[0]) if text and digest == digest_of(text).encode() else None


class EditIndex:
    """The versions that hold an edit, by its id. Each version is read once, at the first question after it was appended."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[int]] = {}
        self._num_seen = 0

    def of(self, edit_id: str, newest: int, readable: Callable[[int], Version | None]) -> list[int]:
        """Return the versions up to `newest` that hold the edit, the oldest first.

        `readable` reads a version, and returns None if it cannot be read.
        """
        for number in range(self._num_seen, newest + 1):
            version = readable(number)
            for edit in version.edits if version else ():
                if edit.id is not None:
                    self._by_id.setdefault(edit.id, []).append(number)
        self._num_seen = max(self._num_seen, newest + 1)
        return self._by_id.get(edit_id, [])
