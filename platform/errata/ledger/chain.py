"""The deltas and editor states of the versions in one chain, read from snapshots where there are any."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

from safetensors import SafetensorError

from errata.delta.kinds import Delta, load_delta
from errata.delta.weight_delta import WeightDelta
from errata.editors.state import EditorState
from errata.ledger.editor_states import StateRows, gathered
from errata.ledger.entry import DELTA, STATE, Version, check_file, child_fingerprint, damaged
from errata.ledger.folders import Folders
from errata.ledger.snapshots import Snapshots, read_segments


class Chain:
    """Reader of what versions hold. `version_of` looks up an entry by number.

    A segment is a run of consecutive versions whose deltas are in one file: a snapshot, or a version's own file.
    """

    def __init__(self, folders: Folders, snapshots: Snapshots, version_of: Callable[[int], Version]) -> None:
        self.folders, self.snapshots, self.version_of = folders, snapshots, version_of
        self._parents: dict[int, int] = {}  # A chain is walked often, and of most versions nothing else is needed.
        self._checked = set[int]()  # snapshots whose deltas match the fingerprints of their versions
        self._newest_state: tuple[int, EditorState] = (0, EditorState())

    def parent(self, number: int) -> int:
        """Return the parent's number, 0 for version 0."""
        if number not in self._parents:
            self._parents[number] = self.version_of(number).parent or 0
        return self._parents[number]

    def numbers(self, number: int) -> list[int]:
        """Return the versions whose deltas make `number`, in order, without version 0."""
        found: list[int] = []
        while number:
            found.append(number)
            number = self.parent(number)
        return found[::-1]

    def delta(self, number: int) -> Delta:
        """Read the delta of one version. Raises `LedgerDamaged` if it does not match the version's fingerprint."""
        version = self.version_of(number)
        if not number:
            return WeightDelta({})
        try:
            delta = load_delta(version.directory / DELTA)
        except (SafetensorError, ValueError, FileNotFoundError) as wrong:
            raise damaged(version.directory, f"{DELTA} cannot be read: {wrong}") from None
        if not self.matches([number], [delta]):
            raise damaged(version.directory, f"{DELTA} is not as it was written")
        return delta

    def matches(self, numbers: Collection[int], deltas: Collection[Delta]) -> bool:
        """Compare deltas with the fingerprints of consecutive versions."""
        return len(numbers) == len(deltas) and all(
            child_fingerprint(self.version_of(self.parent(n)).fingerprint, delta) == self.version_of(n).fingerprint
            for n, delta in zip(numbers, deltas, strict=True)
        )

    def state(self, number: int) -> EditorState | None:
        """Read the editor's state after `number`; None for version 0, which no editor made. Raises `LedgerDamaged`."""
        self.version_of(number)
        if number and self._newest_state[0] != number:
            self._newest_state = number, gathered(self._rows, number).state
        return self._newest_state[1] if number else None

    def keep(self, number: int, state: EditorState) -> None:
        """Keep the state of a version that was just written, so that the next append does not read it."""
        self._newest_state = number, state

    def _rows(self, number: int, names: Collection[str] | None) -> StateRows:
        if (covered := self._covered(number)) and self.snapshots.holds_state(number):
            return StateRows.load(self.snapshots.state_path(number), self.parent(covered[0]), names)
        version = self.version_of(number)
        path = check_file(version, STATE)
        try:
            return StateRows.load(path, version.parent or 0, names)
        except SafetensorError as wrong:
            raise damaged(version.directory, f"{STATE} cannot be read: {wrong}") from None

    def files(self, number: int, snapshots: bool = True) -> list[Path]:
        """Return the files that make version `number` from the base; without `snapshots`, the versions' own files alone."""
        segments = self._segments(number) if snapshots else [([each], False) for each in self.numbers(number)]
        return [self.snapshots.path(n[-1]) if in_snapshot else self.folders.path(n[-1]) / DELTA for n, in_snapshot in segments]

    def deltas(self, number: int) -> list[Delta]:
        """Read the deltas to sum onto the base, in order. A damaged snapshot is replaced by the versions' own files.

        Raises `LedgerDamaged`.
        """
        found: list[Delta] = []
        for numbers, in_snapshot in self._segments(number):
            found += (self.snapshot_deltas(numbers[-1]) if in_snapshot else None) or map(self.delta, numbers)
        return found

    def snapshot_deltas(self, number: int) -> list[Delta] | None:
        """Read the deltas in the snapshot that ends at `number`; None if it is damaged or missing."""
        with contextlib.suppress(SafetensorError, ValueError, KeyError, TypeError, FileNotFoundError):
            found = read_segments(self.snapshots.path(number))
            if number not in self._checked and self.matches(self.snapshots.covered_by(number), found):
                self._checked.add(number)
            return found if number in self._checked else None
        return None

    def snapshot_if_due(self, number: int, every: int) -> None:
        """Write a snapshot that ends at `number` if at least `every` versions have been added since the last one."""
        numbers: list[int] = []
        ancestor = number
        while ancestor and not self._covered(ancestor):
            numbers.append(ancestor)
            ancestor = self.parent(ancestor)
        if len(numbers) >= every:
            self.write_snapshot(numbers[::-1])

    def write_snapshot(self, numbers: list[int]) -> None:
        """Write the snapshot of consecutive versions."""
        before = self.parent(numbers[0])
        self.snapshots.save({n: self.delta(n) for n in numbers}, gathered(self._rows, numbers[-1], before))

    def _segments(self, number: int) -> list[tuple[list[int], bool]]:
        """Split the chain into segments: (versions, True if a snapshot holds them)."""
        self.version_of(number)
        found: list[tuple[list[int], bool]] = []
        while number:
            covered = self._covered(number)
            found.append((covered or [number], bool(covered)))
            number = self.parent(found[-1][0][0])
        return found[::-1]

    def _covered(self, number: int) -> list[int]:
        """Return the versions in the snapshot that ends at `number`; none if they are not consecutive versions of the chain."""
        covered, ancestor = self.snapshots.covered_by(number), number
        for each in reversed(covered):
            if not ancestor or each != ancestor:
                return []
            ancestor = self.parent(ancestor)
        return covered
