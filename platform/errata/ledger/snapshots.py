"""Snapshots: files that hold the deltas of a segment of the chain, and what the editor's state grew by over it.

A snapshot only saves opening many files. What is missing or damaged in it is read from the versions, with the same bits.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from errata.delta.kinds import Delta, delta_from_tensors, load_delta
from errata.durable import replaced
from errata.ledger.editor_states import StateRows, is_whole
from errata.ledger.entry import write_tensors

CORRUPT = ".corrupt"


class Snapshots:
    """The files NUMBER.safetensors and NUMBER.state.safetensors in `folder`, for segments that end at that version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._covered: dict[int, list[int]] = {}
        self._whole: set[int] = set()

    def path(self, number: int) -> Path:
        """Return the file of the deltas."""
        return self.folder / f"{number:08d}.safetensors"

    def state_path(self, number: int) -> Path:
        """Return the file of the editor's state."""
        return self.folder / f"{number:08d}.state.safetensors"

    @property
    def newest(self) -> int | None:
        """The highest version that a snapshot ends at."""
        return max((int(path.name[:8]) for path in self.folder.glob("*.safetensors") if path.name[:8].isdigit()), default=None)

    def covered_by(self, number: int) -> list[int]:
        """Return the versions, in order, in the snapshot that ends at `number`; none if it cannot be read."""
        if number not in self._covered and self.path(number).exists():
            try:
                with safe_open(str(self.path(number)), framework="pt") as file:
                    self._covered[number] = _numbers(file.metadata()["versions"])
            except (SafetensorError, ValueError, KeyError, TypeError):
                return []
        return self._covered.get(number, [])

    def holds_state(self, number: int) -> bool:
        """Check that the snapshot that ends at `number` has a whole file of the editor's state."""
        if number not in self._whole and self.covered_by(number) and self.state_path(number).exists():
            with contextlib.suppress(SafetensorError, ValueError, KeyError, TypeError):
                if is_whole(self.state_path(number)):
                    self._whole.add(number)
        return number in self._whole

    def save(self, deltas: Mapping[int, Delta], state: StateRows) -> None:
        """Write the deltas of consecutive versions, by number, and what the state grew by over them: both files or none."""
        numbers = list(deltas)
        tensors = {f"{n:08d}|{key}": t for n, delta in deltas.items() for key, t in delta.to_tensors().items()}
        with replaced(self.path(numbers[-1])) as file:
            write_tensors(file, tensors, {"versions": json.dumps(numbers)})
            with replaced(self.state_path(numbers[-1])) as beside:
                state.save(beside)
        self._covered.pop(numbers[-1], None)

    def quarantine(self, number: int) -> list[Path]:
        """Rename the files of a damaged snapshot, and return their new names. Nothing is deleted."""
        self._covered.pop(number, None)
        self._whole.discard(number)
        moved = []
        for path in (self.path(number), self.state_path(number)):
            if path.exists():
                moved.append(path.rename(_free(path.with_name(path.name + CORRUPT))))
        return moved


def read_segments(path: str | Path) -> list[Delta]:
    """Read the deltas in a file that `Ledger.files_to` names, in order: one of a version's file, many of a snapshot.

    Raises `FileNotFoundError`, and `SafetensorError` or `ValueError` if the file is not as it was written.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if "versions" not in metadata:
            return [load_delta(path)]
        grouped: dict[int, dict[str, Tensor]] = {number: {} for number in _numbers(metadata["versions"])}
        for name in file.keys():  # noqa: SIM118
            number, _, key = name.partition("|")
            if int(number) not in grouped:
                raise ValueError(f"{path} lists the versions {sorted(grouped)}, but has a tensor {name}")
            grouped[int(number)][key] = file.get_tensor(name)
    return [delta_from_tensors(tensors) for tensors in grouped.values()]


def _numbers(text: str) -> list[int]:
    """Parse a list of version numbers. Raises `ValueError`."""
    numbers = json.loads(text)
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"{text!r} is not a list of versions")
    return numbers


def _free(path: Path) -> Path:
    return next(each for each in (path, *(path.with_name(f"{path.name}.{i}") for i in range(2, 1000))) if not each.exists())
