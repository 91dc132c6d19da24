"""Files that join what a stretch of the chain holds: the deltas, each apart, and what the editor's state grew by.

A snapshot only saves opening many files. What it lacks or has damaged is read from the versions, to the same bits.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from errata.delta.weight_delta import WeightDelta
from errata.durable import replaced
from errata.ledger.editor_states import StateRows, is_whole
from errata.ledger.entry import write_tensors

CORRUPT = ".corrupt"


class Snapshots:
    """In `folder`: NUMBER.safetensors with the deltas of a stretch that ends at that version, NUMBER.state.safetensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._covered: dict[int, list[int]] = {}
        self._whole: set[int] = set()

    def path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.safetensors"

    def state_path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.state.safetensors"

    @property
    def newest(self) -> int | None:
        return max((int(path.name[:8]) for path in self.folder.glob("*.safetensors") if path.name[:8].isdigit()), default=None)

    def covered_by(self, number: int) -> list[int]:
        """The versions, in order, whose deltas are in the snapshot that ends at `number`; none if it cannot be read."""
        if number not in self._covered and self.path(number).exists():
            try:
                with safe_open(str(self.path(number)), framework="pt") as file:
                    self._covered[number] = _numbers(file.metadata()["versions"])
            except (SafetensorError, ValueError, KeyError, TypeError):
                return []
        return self._covered.get(number, [])

    def holds_state(self, number: int) -> bool:
        """Whether a stretch that ends at `number` has its states joined, in a file that is whole."""
        if number not in self._whole and self.covered_by(number) and self.state_path(number).exists():
            with contextlib.suppress(SafetensorError, ValueError, KeyError, TypeError):
                if is_whole(self.state_path(number)):
                    self._whole.add(number)
        return number in self._whole

    def save(self, deltas: Mapping[int, WeightDelta], state: StateRows) -> None:
        """Of consecutive versions of the chain, in order, and what the state grew by over them. Both files or none."""
        numbers = list(deltas)
        tensors = {f"{n:08d}|{key}": t for n, delta in deltas.items() for key, t in delta.to_tensors().items()}
        with replaced(self.path(numbers[-1])) as file:
            write_tensors(file, tensors, {"versions": json.dumps(numbers)})
            with replaced(self.state_path(numbers[-1])) as beside:
                state.save(beside)
        self._covered.pop(numbers[-1], None)

    def quarantine(self, number: int) -> list[Path]:
        """Out of the way, not deleted; returns their new names."""
        self._covered.pop(number, None)
        self._whole.discard(number)
        moved = []
        for path in (self.path(number), self.state_path(number)):
            if path.exists():
                moved.append(path.rename(_free(path.with_name(path.name + CORRUPT))))
        return moved


def read_segments(path: str | Path) -> list[WeightDelta]:
    """The deltas in a file that `Ledger.files_to` names, in order: one from a version's file, many from a snapshot.

    Raises `FileNotFoundError`, and `SafetensorError` or `ValueError` if it is not what was written.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if "versions" not in metadata:
            return [WeightDelta.load(path)]
        grouped: dict[int, dict[str, Tensor]] = {number: {} for number in _numbers(metadata["versions"])}
        for name in file.keys():  # noqa: SIM118
            number, _, key = name.partition("|")
            if int(number) not in grouped:
                raise ValueError(f"{path} says that it holds versions {sorted(grouped)}, and holds {name}")
            grouped[int(number)][key] = file.get_tensor(name)
    return [WeightDelta.from_tensors(tensors) for tensors in grouped.values()]


def _numbers(text: str) -> list[int]:
    """Raises `ValueError` if it is no list of numbers."""
    numbers = json.loads(text)
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"{text!r} is no list of versions")
    return numbers


def _free(path: Path) -> Path:
    return next(each for each in (path, *(path.with_name(f"{path.name}.{i}") for i in range(2, 1000))) if not each.exists())
