"""Ways to damage a file, and ledgers of versions with one edit each to damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.edit import Edit
from errata.editors.state import EditorState
from errata.ledger import Ledger

DELTA, STATE = "delta.safetensors", "state.safetensors"
EDIT = Edit("a prompt", "its target", id="one", poster="ada")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


damages = pytest.mark.parametrize("damage", [cut, flip, empty, remove], ids=lambda d: d.__name__)


def append(ledger, random_delta, parent=None, expected_head=None):
    """Append a version with one edit named after its number, and a state with two more rows than the parent's."""
    parent = ledger.head if parent is None else parent
    before = ledger.state(parent) or EditorState()
    number = ledger.newest + 1
    rows = torch.randn(2, 3, generator=torch.Generator().manual_seed(number))
    edits = (Edit(f"prompt {number}", "target", id=f"id-{number}", poster="ada"),)
    state = before.grown(1, {"past": rows}, {})
    return ledger.append(parent, random_delta(number), state, edits, {"efficacy": 1.0}, ("E", "p"), expected_head)


def append_state(ledger, random_delta, state=None):
    """Append a version with the edit `EDIT` and this state, or one with 40 rows."""
    state = EditorState(1, {"past": torch.ones(40, 30)}) if state is None else state
    return ledger.append(ledger.head, random_delta(ledger.newest + 1), state, [EDIT], {"efficacy": 1.0}, ("E", "p"))


def fill(ledger, random_delta, count):
    for _ in range(count):
        append(ledger, random_delta)
    return Ledger.open(ledger.directory, ledger.snapshot_every)


def digests(deltas):
    return [delta.digest() for delta in deltas]


def files_of(directory: Path) -> dict[str, bytes]:
    """Return every file except the lock, by name."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != "lock"}
