"""The scrub finds damage anywhere in a ledger, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit
from errata.editors.state import EditorState
from errata.ledger import Ledger
from errata.ledger.scrub import scrub
from tests.unit.cli.invoke import errata, words


@pytest.fixture
def grown(ledger: Ledger, random_delta: Callable[..., WeightDelta]) -> Ledger:
    """Make a ledger of nine versions, two of them outside the live chain, and of two snapshots."""
    for number in range(1, 10):
        if number == 8:
            ledger.move_head(5)
        state = EditorState(number, {"past": torch.full((number, 3), float(number))})
        ledger.append(ledger.head, random_delta(number), state, [Edit("p", "t", id=f"e{number}")], {}, ("E", "p"))
    return ledger


def damaged(ledger: Ledger) -> dict[str, list[str]]:
    return {name: faults for name, faults in scrub(ledger.directory) if faults}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_whole_ledger_is_checked_in_whole(grown: Ledger) -> None:
    found = list(scrub(grown.directory))
    names = [f"version {number}" for number in range(10)] + ["the snapshot up to version 4"]
    assert [name for name, _ in found][: len(names)] == names and not any(faults for _, faults in found)


@pytest.mark.parametrize("number", [1, 4, 6, 9], ids="at the beginning,in a snapshot,not live,newest".split(","))
@pytest.mark.parametrize("file", ["delta.safetensors", "state.safetensors", "edits.jsonl", "entry.json"])
def test_a_flipped_bit_in_any_file_of_any_version_is_found(grown: Ledger, number: int, file: str) -> None:
    path = grown.folders.path(number) / file
    flip(path)
    before = path.read_bytes()
    found = damaged(grown)
    assert f"version {number}" in found and next(iter(found)) == f"version {number}"
    assert path.read_bytes() == before and grown.folders.path(number).is_dir(), "nothing is changed"


def test_a_missing_file_is_found(grown: Ledger) -> None:
    (grown.folders.path(3) / "delta.safetensors").unlink()
    assert damaged(grown)["version 3"] == ["delta.safetensors is missing"]


@pytest.mark.parametrize("state", [False, True])
def test_a_damaged_snapshot_is_found_also_by_a_process_that_has_read_it(grown: Ledger, state: bool) -> None:
    assert grown.segments(4) and grown.state(4) and not damaged(grown)
    flip(grown.snapshots.state_path(4) if state else grown.snapshots.path(4))
    (found,) = damaged(grown).items()
    assert found[0] == "the snapshot up to version 4" and "not as it was written" in found[1][0]


def test_the_command_names_what_is_damaged_and_ends_with_an_error(grown: Ledger) -> None:
    done = errata("ledger", "verify", str(grown.directory))
    assert done.exit_code == 0 and "are whole" in words(done)
    flip(grown.folders.path(2) / "delta.safetensors")
    done = errata("ledger", "verify", str(grown.directory))
    assert done.exit_code == 1 and "version 2 is damaged: delta.safetensors is not as it was written" in words(done)
    done = errata("ledger", "verify", str(grown.directory / "none"))
    assert done.exit_code == 1 and "there is no ledger in" in words(done)
