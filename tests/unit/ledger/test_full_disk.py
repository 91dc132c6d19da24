"""A full disk at any write leaves the ledger unchanged."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.edit import Code, EditRejected
from errata.editors.state import EditorState
from errata.ledger import Ledger, LedgerConflict
from errata.ledger.recovery import recover
from tests.fakes.full_disk import no_file_over
from tests.unit.ledger.damage import EDIT, append_state


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a ledger, without the lock, empty logs and snapshots, which hold nothing new."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "lock"]
    files = [path for path in files if path.parent.name != "snapshots"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files if path.stat().st_size}


@pytest.mark.parametrize("num_bytes", [0, 100, 300, 1_000, 2_000, 2_800])
@pytest.mark.parametrize("num_before", [1, 4])
def test_a_version_that_does_not_fit_leaves_the_ledger_unchanged(ledger, random_delta, num_bytes, num_before):
    for _ in range(num_before):  # With 4 versions a snapshot is written first.
        append_state(ledger, random_delta)
    before = files_of(ledger.directory)
    with no_file_over(num_bytes), pytest.raises(OSError) as full:
        append_state(ledger, random_delta)
    assert full.value.errno == errno.EFBIG
    assert files_of(ledger.directory) == before
    assert (ledger.head, ledger.newest, Ledger.open(ledger.directory).head) == (num_before, num_before, num_before)
    assert append_state(ledger, random_delta).number == num_before + 1
    assert ledger.verify(num_before + 1) == [] and recover(ledger).notes == ()


@pytest.mark.parametrize("what", ["move", "refuse", "retract"])
@pytest.mark.parametrize("num_bytes", [0, 50, 150])
def test_moves_and_refusals_that_do_not_fit_leave_the_ledger_unchanged(ledger, random_delta, what, num_bytes):
    append_state(ledger, random_delta)
    append_state(ledger, random_delta)
    for number in (1, 2):  # With two lines in the log, 150 bytes suffice for HEAD but not for the log.
        ledger.move_head(number)
        ledger.refuse(number, EDIT, EditRejected("no room", code=Code.EDITOR_FAILED))
    do = {
        "move": lambda: ledger.move_head(1, by="ada"),
        "refuse": lambda: ledger.refuse(2, EDIT, EditRejected("no room", field="prompt", code=Code.EDITOR_FAILED)),
        "retract": lambda: ledger.retract(2, 1),
    }[what]
    before = files_of(ledger.directory)
    with no_file_over(num_bytes), pytest.raises(OSError):
        do()
    assert files_of(ledger.directory) == before
    assert ledger.head == 2 and not ledger.retracted()
    do()
    counts = ledger.head, len(list(ledger.head_log())), len(list(ledger.refusals()))
    assert counts == ((2, 2, 3) if what == "refuse" else (1, 3, 2))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one MiB, where that is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_every_call_succeeds_or_changes_nothing(small_disk, random_delta):
    ledger = Ledger.create(small_disk / "ledger", {"model": "m", "fingerprint": "f", "matrices": ["w"]}, snapshot_every=4)
    for _ in range(4):
        append_state(ledger, random_delta)
    ballast = small_disk / "ballast"
    num_failed = 0
    for free in range(0, 80_000, 3_000):
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
        ballast.open("r+b").truncate(max(0, ballast.stat().st_size - free))
        before, head = files_of(ledger.directory), ledger.head
        try:
            append_state(ledger, random_delta)
            ledger.move_head(1)
            ledger.refuse(1, EDIT, EditRejected("no", code=Code.EDITOR_FAILED))
            ledger.move_head(ledger.newest)
        except OSError as full:
            assert full.errno == errno.ENOSPC
            num_failed += 1
            if ledger.newest == head:
                assert files_of(ledger.directory) == before
        ballast.unlink()
        ledger.move_head(ledger.newest)
        again = Ledger.open(ledger.directory, 4)
        assert recover(again).quarantined == () and again.head == again.newest
        assert all(again.verify(version.number) == [] for version in again.versions())
    assert num_failed > 3 and ledger.newest > 4


def test_a_conflict_is_raised_before_anything_is_written(ledger, random_delta):
    append_state(ledger, random_delta)
    before = files_of(ledger.directory)
    with no_file_over(0), pytest.raises(LedgerConflict):
        ledger.append(0, random_delta(1), EditorState(), (), {}, ("E", "p"))
    assert files_of(ledger.directory) == before
