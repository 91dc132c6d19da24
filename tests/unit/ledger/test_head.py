"""The head file and the head log, damaged or interrupted."""

from __future__ import annotations

import pytest

from errata.ledger import Ledger
from errata.ledger.recovery import recover
from tests.unit.ledger.damage import append, cut, empty, fill, flip, remove


def test_an_interrupted_retraction_is_finished(ledger, random_delta, monkeypatch):
    ledger = fill(ledger, random_delta, 2)
    ledger.move_head(1)
    append(ledger, random_delta, parent=2, expected_head=1)

    def fail(*_):
        raise OSError("power cut")

    monkeypatch.setattr("errata.durable.os.replace", fail)  # The log has its line, HEAD is unchanged.
    with pytest.raises(OSError, match="power cut"):
        ledger.retract(3, 2)
    monkeypatch.undo()
    assert ledger.head == 3
    found = recover(Ledger.open(ledger.directory))
    assert (found.head, found.notes) == (2, ("version 3 was being retracted; the head is now version 2",))
    ledger.move_head(3, by="ada")
    assert recover(ledger).head == 3


@pytest.mark.parametrize("damage", [cut, flip, empty, remove], ids=lambda d: d.__name__)
def test_a_damaged_head_file_is_restored_from_the_log(ledger, random_delta, damage):
    ledger = fill(ledger, random_delta, 5)
    ledger.move_head(2, by="ada")
    damage(ledger.directory / "HEAD")
    assert ledger.head == 2
    found = recover(ledger)
    assert found.head == 2 and found.notes[0].startswith("HEAD ") and found.notes[0].endswith("the head is now version 2")
    assert [move["by"] for move in ledger.head_log()] == ["ada", "recovery"]
    assert (recover(Ledger.open(ledger.directory)).notes, append(ledger, random_delta).parent) == ((), 2)


def test_without_head_file_and_log_the_newest_version_is_the_head(ledger, random_delta):
    ledger = fill(ledger, random_delta, 5)
    ledger.move_head(2)
    (ledger.directory / "HEAD").write_text('{"version": 2, "after"')
    (ledger.directory / "moves.jsonl").write_bytes(b"\xff\xfe\n{")
    found = recover(ledger)
    assert found.head == ledger.head == 5
    assert found.notes[0] == "2 lines of moves.jsonl cannot be read and are skipped"
    assert "HEAD cannot be read" in found.notes[1] and "the head is now version 5" in found.notes[1]


def test_a_torn_line_of_the_log_costs_no_other_line(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    ledger.move_head(1, by="ada")
    with (ledger.directory / "moves.jsonl").open("ab") as log:
        log.write(b'{"version": 3, "af')
    ledger.move_head(2, by="bo")
    assert [(m["before"], m["version"], m["by"]) for m in ledger.head_log()] == [(3, 1, "ada"), (1, 2, "bo")]
    assert "1 lines of moves.jsonl" in recover(ledger).notes[0]


def test_the_epoch_of_the_head_grows_with_every_change_of_it(ledger, random_delta):
    found = [ledger.head_at()]
    for change in (
        lambda: append(ledger, random_delta),
        lambda: append(ledger, random_delta),
        lambda: ledger.move_head(1),
        lambda: append(ledger, random_delta),
        lambda: ledger.retract(3, 1),
        lambda: ledger.move_head(2),
    ):
        change()
        found.append(Ledger.open(ledger.directory).head_at())
        assert ledger.head_at() == found[-1]
    assert found == [(0, 0), (1, 1), (2, 2), (3, 1), (4, 3), (5, 1), (6, 2)]


def test_the_epoch_does_not_fall_with_a_damaged_version_or_head(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    ledger.move_head(1)
    append(ledger, random_delta)
    cut(ledger.folders.path(4) / "delta.safetensors")
    assert ledger.head_at() == (5, 4)
    recover(ledger)
    assert ledger.head_at() == (5, 1)
    remove(ledger.directory / "HEAD")
    assert ledger.head_at() == (5, 1)


def test_the_epoch_of_a_head_of_an_earlier_release_is_counted(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    (ledger.directory / "HEAD").write_text('{"version": 2, "after": 3}')
    (ledger.directory / "moves.jsonl").write_text(
        '{"version": 1, "after": 3, "before": 3}\n{"version": 2, "after": 3, "before": 1}\n'
    )
    assert ledger.head_at() == (5, 2)
    ledger.move_head(1)
    assert ledger.head_at() == (6, 1)
