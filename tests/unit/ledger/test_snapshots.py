"""Snapshots, whole and damaged."""

from __future__ import annotations

import pytest
import torch

from errata.ledger import Ledger, read_segments
from errata.ledger.recovery import recover
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
