"""The index, damaged."""

from __future__ import annotations

from errata.ledger import Ledger
from errata.ledger.recovery import recover
from tests.unit.ledger.damage import append, damages, fill


@damages
def test_a_damaged_index_is_ignored_and_repaired(ledger, random_delta, damage):
    ledger = fill(ledger, random_delta, 6)
    versions = ledger.versions()
    damage(ledger.directory / "index")
    assert Ledger.open(ledger.directory).versions() == versions
    assert append(Ledger.open(ledger.directory), random_delta).number == 7
    assert "the index lacked" in recover(Ledger.open(ledger.directory)).notes[0]
    again = Ledger.open(ledger.directory)
    assert sorted(again.index.lines) == list(range(8))
    assert again.versions()[:7] == versions and recover(again).notes == ()
