"""Snapshots, whole and damaged."""

from __future__ import annotations

import asyncio

import pytest
import torch

from errata.ledger import Ledger, read_segments
from errata.ledger.recovery import recover
from serving.worker import snapshots as module
from serving.worker.lull import Lull
from serving.worker.snapshots import write_snapshots
from tests.unit.ledger.damage import damages, digests, fill, remove


@damages
@pytest.mark.parametrize("kind", ["path", "state_path"])
def test_a_damaged_snapshot_gives_the_same_bits_and_is_rebuilt(ledger, random_delta, damage, kind):
    ledger = fill(ledger, random_delta, 9)
    files, deltas, past = ledger.files_to(9), digests(ledger.segments(9)), ledger.state(9).tensors["past"]
    path = getattr(ledger.snapshots, kind)(4)
    whole = path.read_bytes()
    damage(path)
    again = Ledger.open(ledger.directory, 4)
    assert digests(again.segments(9)) == deltas
    assert torch.equal(again.state(9).tensors["past"], past)
    found = recover(Ledger.open(ledger.directory, 4))
    assert (found.head, found.quarantined) == (9, ())
    again = Ledger.open(ledger.directory, 4)
    assert digests(again.segments(9)) == deltas
    assert torch.equal(again.state(9).tensors["past"], past)
    if damage is not remove:
        assert path.read_bytes() == whole and "the snapshot up to version 4 was damaged" in found.notes[0]
        assert path.with_name(path.name + ".corrupt").exists()
        assert again.files_to(9) == files
        assert digests(delta for file in again.files_to(9) for delta in read_segments(file)) == deltas
        plain = again.files_to(9, snapshots=False)
        assert len(plain) == 9 and digests(delta for file in plain for delta in read_segments(file)) == deltas


def test_snapshots_may_be_written_apart_from_appends_and_not_for_ever(ledger, random_delta):
    ledger.snapshots_later = True
    fill(ledger, random_delta, 9)
    assert ledger.snapshots.newest is None
    ledger.snapshot()
    assert ledger.snapshots.newest == 9 and len(ledger.files_to(9)) == 1
    assert digests(ledger.segments(9)) == digests([ledger.delta(n) for n in range(1, 10)])
    fill(ledger, random_delta, 3)
    ledger.snapshot()
    assert ledger.snapshots.newest == 9, "only four versions make one"
    fill(ledger, random_delta, 17)
    assert ledger.snapshots.newest == 9
    fill(ledger, random_delta, 1)
    assert ledger.snapshots.newest == 29, "no reader opens an endless number of files"


def test_the_service_writes_snapshots_in_a_lull(ledger, random_delta, monkeypatch):
    monkeypatch.setattr(module, "PERIOD_S", 0.0)
    ledger.snapshots_later = True
    lull, full = Lull(quiet_s=0.0), [OSError("disk full")]
    write = ledger.snapshot

    def snapshot():
        if full:
            raise full.pop()
        write()

    async def written():
        task = asyncio.create_task(write_snapshots(ledger, lull, asyncio.Lock()))
        while ledger.snapshots.newest is None and not task.done():
            await asyncio.sleep(0)
        task.cancel()

    ledger.snapshot = snapshot
    fill(ledger, random_delta, 5)
    asyncio.run(asyncio.wait_for(written(), 30))
    assert ledger.snapshots.newest == 5 and not full, "a snapshot that fails is written later"
