"""Power cuts: what a process says is durable is on the device, of which a copy is taken while the page cache holds more.

It needs root, a loop device and ext4. A loop device loses no cache of its own, so that a missing flush of a disk does not show.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from errata.ledger import Ledger
from errata.ledger.recovery import recover
from serving.worker.journal import Journal
from serving.worker.reconcile import Reconciler
from tests.chaos.loop_disk import CannotMount, LoopDisk
from tests.chaos.service import frozen
from tests.unit.ledger import power_cut_writer

NUM_CUTS = 6
START_S = 300.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    try:
        disk = LoopDisk.make(tmp_path)
    except CannotMount as reason:
        pytest.skip(f"no power cut can be imitated here: {reason}")
    try:
        yield disk
    finally:
        disk.unmount()


def said_by(output: Path) -> list[list[str]]:
    """Return the whole lines that the process has printed, by word."""
    return [line.split() for line in output.read_text().splitlines(keepends=True) if line.endswith("\n")]


def cuts(disk: LoopDisk, output: Path) -> list[tuple[Path, list[list[str]]]]:
    """Run the process, and copy the device at random moments; returns the copies, each with what was printed until then."""
    draw, found = random.Random(0), []
    command = [sys.executable, "-m", power_cut_writer.__name__, str(disk.folder)]
    with output.open("wb") as lines, subprocess.Popen(command, stdout=lines) as writer:
        deadline = time.monotonic() + START_S
        while not said_by(output) and writer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        for number in range(NUM_CUTS):
            time.sleep(draw.uniform(0.05, 0.6))
            with frozen(psutil.Process(writer.pid)):
                found.append((disk.copy().rename(disk.image.with_name(f"cut-{number}")), said_by(output)))
        writer.kill()
    return found


def test_what_was_durable_survives_a_power_cut(disk: LoopDisk, tmp_path: Path) -> None:
    seen = 0
    for copy, said in cuts(disk, tmp_path / "output"):
        disk.return_to(copy)
        ledger = Ledger.open(disk.folder / "ledger", 4)
        assert recover(ledger).quarantined == ()
        journal = Journal(disk.folder / "ledger.journal")
        Reconciler(ledger, journal, lambda: None).reconcile()
        states = {entry.id: entry.state for entry in journal.newest(10_000)}
        journal.close()
        assert [id for what, id in said if what == "accepted" and id not in states] == []
        assert [id for what, id in said if what == "applied" and states[id] != "applied"] == []
        made = [int(number) for what, number in said if what == "made"]
        assert all(ledger.verify(number) == [] for number in made)
        if said and said[-1][0] == "moved":
            assert ledger.head in (int(said[-1][1]), ledger.newest)
        seen += len(said)
    assert seen > 10 * NUM_CUTS
