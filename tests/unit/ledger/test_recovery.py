"""Versions that are truncated, changed, emptied or missing: what is found, what is repaired, and what is never lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from errata.edit import Edit
from errata.editors.state import EditorState
from errata.ledger import Ledger, LedgerDamaged, UnknownVersion
from errata.ledger.recovery import recover
from tests.unit.ledger.damage import DELTA, STATE, append, cut, damages, empty, files_of, fill, flip


def test_recovery_leaves_a_whole_ledger_unchanged(ledger, random_delta):
    fill(ledger, random_delta, 9)
    ledger.move_head(7, by="ada")
    before = files_of(ledger.directory)
    found = recover(Ledger.open(ledger.directory))
    assert (found.head, found.quarantined, found.notes) == (7, (), ())
    assert files_of(ledger.directory) == before
    assert all(ledger.verify(number) == [] for number in range(10))


@damages
@pytest.mark.parametrize("name", ["entry.json", DELTA, STATE, "edits.jsonl"])
def test_a_damaged_newest_version_is_quarantined(ledger, random_delta, damage, name):
    ledger = fill(ledger, random_delta, 6)
    damage(ledger.folders.path(6) / name)
    left = {path.name: path.read_bytes() for path in ledger.folders.path(6).iterdir()}
    assert any(name in fault for fault in ledger.verify(6))
    found = recover(Ledger.open(ledger.directory))
    (version,) = found.quarantined
    assert (found.head, version.number, [edit.id for edit in version.edits]) == (5, 6, ["id-6"])
    assert version.edits[0].poster == "ada" and any(name in fault for fault in version.faults)
    assert version.path.name == "00000006.corrupt"
    assert [(a.number, a.edits, a.path) for a in Ledger.open(ledger.directory).quarantined()] == [
        (6, version.edits, version.path)
    ]
    assert {path.name: path.read_bytes() for path in version.path.iterdir()} == left
    for each in (ledger, Ledger.open(ledger.directory, 4)):
        assert (each.head, each.newest, [v.number for v in each.versions()][-1]) == (5, 5, 5)
    again = Ledger.open(ledger.directory, 4)
    with pytest.raises(UnknownVersion, match=r"quarantined as .*00000006\.corrupt"):
        again.version(6)
    assert again.find_edit("id-6") is None
    assert (append(again, random_delta).number, again.chain(7)) == (7, [1, 2, 3, 4, 5, 7])
    assert [ledger.newest, ledger.head, Ledger.open(ledger.directory).head, again.find_edit("id-5")] == [7, 7, 7, 5]
    assert recover(Ledger.open(ledger.directory)).quarantined == ()


def test_readable_edits_of_a_damaged_version_are_returned(ledger, random_delta):
    edits = [Edit(f"p{i}", "t", id=str(i)) for i in range(3)]
    ledger.append(0, random_delta(1), EditorState(), edits, {}, ("E", "p"))
    (ledger.directory / "index").unlink()
    lines = (ledger.folders.path(1) / "edits.jsonl").read_bytes().split(b"\n")
    (ledger.folders.path(1) / "edits.jsonl").write_bytes(b"\n".join([lines[0], b"\xff" + lines[1], lines[2][:9]]))
    (version,) = recover(Ledger.open(ledger.directory)).quarantined
    assert [edit.id for edit in version.edits] == ["0"]


def test_several_damaged_versions_are_quarantined_in_turn(ledger, random_delta):
    ledger = fill(ledger, random_delta, 7)
    for number in (6, 7):
        empty(ledger.folders.path(number) / "entry.json")
    found = recover(ledger)
    assert (found.head, [version.number for version in found.quarantined]) == (5, [7, 6])
    assert append(ledger, random_delta).number == 8


def test_the_number_of_a_missing_version_is_not_used_again(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    shutil.rmtree(ledger.folders.path(3))
    (version,) = recover(ledger).quarantined
    assert (version.number, version.faults, [e.id for e in version.edits]) == (3, ("its folder is missing",), ["id-3"])
    assert append(ledger, random_delta).number == 4


def lose(ledger, number):
    shutil.rmtree(ledger.folders.path(number))


def tear(ledger, number):
    cut(ledger.folders.path(number) / DELTA)


@pytest.mark.parametrize("ruin", [lose, tear])
@pytest.mark.parametrize("back_to", [None, 1, 2, 3])
def test_a_quarantined_version_records_whether_it_was_live(ledger, random_delta, ruin, back_to):
    ledger = fill(ledger, random_delta, 3)
    if back_to is not None:
        ledger.move_head(back_to, by="ada")
    if back_to == 3:
        append(ledger, random_delta, parent=1, expected_head=3)
        ledger.move_head(3)
        ruin(ledger, 4)
    for number in (2, 3):
        ruin(ledger, number)
    wanted = {None: {2: True, 3: True}, 1: {2: False, 3: False}, 2: {2: True, 3: False}, 3: {2: True, 3: True, 4: False}}
    found = recover(Ledger.open(ledger.directory))
    assert {version.number: version.was_live for version in found.quarantined} == wanted[back_to] and found.head == 1
    now, later = (
        {version.number: (version.was_live, version.faults) for version in each}
        for each in (found.quarantined, Ledger.open(ledger.directory).quarantined())
    )
    assert now == later and all(faults for _, faults in later.values())


def test_a_version_outside_the_live_branch_was_not_live(ledger, random_delta):
    ledger = fill(ledger, random_delta, 2)
    append(ledger, random_delta, parent=1, expected_head=2)
    ledger.move_head(2)
    tear(ledger, 3)
    assert [(version.number, version.was_live) for version in recover(ledger).quarantined] == [(3, False)]
    assert ledger.head == 2


@pytest.mark.parametrize("note", [None, b"{", b'{"was_live": false, "faults": [], "digest": "0"}'])
def test_a_quarantined_version_without_a_note_counts_as_live(ledger, random_delta, note):
    ledger = fill(ledger, random_delta, 2)
    ledger.move_head(1)
    tear(ledger, 2)
    assert not recover(ledger).quarantined[0].was_live
    path = ledger.folders.quarantine_path(2).with_name("00000002.corrupt.json")
    path.unlink() if note is None else path.write_bytes(note)
    assert [(version.number, version.was_live, version.faults) for version in ledger.quarantined()] == [(2, True, ())]


def test_a_recovery_interrupted_after_the_note_is_resumed(ledger, random_delta, monkeypatch):
    ledger = fill(ledger, random_delta, 2)
    ledger.move_head(1)
    tear(ledger, 2)

    def fail(*_):
        raise OSError("power cut")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="power cut"):
        recover(ledger)
    monkeypatch.undo()
    again = Ledger.open(ledger.directory)
    assert (again.quarantined(), again.newest) == ([], 2)
    (ledger.directory / "versions" / ".new-00000002.corrupt.json").write_text("half a note")
    assert (
        [version.was_live for version in recover(again).quarantined]
        == [version.was_live for version in again.quarantined()]
        == [False]
    )


def test_an_unreadable_version_outside_the_live_chain_hides_no_other(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    ledger.move_head(1)
    append(ledger, random_delta)
    (ledger.directory / "index").unlink()
    flip(ledger.folders.path(2) / "entry.json")
    again = Ledger.open(ledger.directory)
    assert (recover(again).head, [version.number for version in again.versions()]) == (4, [0, 1, 3, 4])
    assert [again.find_edit(f"id-{number}") for number in range(1, 5)] == [1, None, 3, 4]
    with pytest.raises(LedgerDamaged, match=r"version 2 is damaged: entry\.json"):
        again.version(2)


def test_the_head_before_a_damaged_branch_is_restored(ledger, random_delta):
    ledger = fill(ledger, random_delta, 5)
    append(ledger, random_delta, parent=2, expected_head=5)
    flip(ledger.folders.path(6) / DELTA)
    assert recover(ledger).head == 5


def test_a_damaged_head_that_is_not_the_newest_is_quarantined(ledger, random_delta):
    ledger = fill(ledger, random_delta, 4)
    append(ledger, random_delta, parent=2, expected_head=4)
    ledger.move_head(4)
    flip(ledger.folders.path(4) / STATE)
    found = recover(Ledger.open(ledger.directory))
    assert (found.head, [version.number for version in found.quarantined], ledger.newest) == (3, [4], 5)
    assert "the head was moved to version 4, which does not exist; the head is now version 3" in found.notes
    assert (ledger.head, list(ledger.head_log())[-1]["by"]) == (3, "recovery")


def test_a_damaged_head_with_descendants_is_an_error_with_a_remedy(ledger, random_delta):
    ledger = fill(ledger, random_delta, 4)
    ledger.move_head(3)
    flip(ledger.folders.path(3) / DELTA)
    before = files_of(ledger.directory)
    with pytest.raises(LedgerDamaged, match=r"version 3 is damaged, and versions \[4\] follow it.*move_head"):
        recover(ledger)
    assert files_of(ledger.directory) == before
    ledger.move_head(2)
    assert recover(ledger).head == 2


@pytest.mark.parametrize("name", [DELTA, "entry.json"])
@damages
def test_a_damaged_version_in_the_middle_of_the_chain_is_named(ledger, random_delta, damage, name):
    ledger = fill(ledger, random_delta, 3)
    (ledger.directory / "index").unlink()
    damage(ledger.folders.path(2) / name)
    again = Ledger.open(ledger.directory)
    with pytest.raises(LedgerDamaged, match=f"version 2 is damaged: {name}.*Restore .*00000002 from a backup"):
        again.segments(3)
    assert again.verify(2) and again.verify(1) == []


def test_the_head_is_not_moved_to_a_damaged_version(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    flip(ledger.folders.path(1) / STATE)
    with pytest.raises(LedgerDamaged, match=r"version 1 is damaged: state\.safetensors is not as it was written"):
        ledger.move_head(1)
    assert (ledger.head, list(ledger.head_log())) == (3, [])


def test_a_missing_version_in_the_middle_of_the_chain_is_named(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    shutil.rmtree(ledger.folders.path(2))
    with pytest.raises(UnknownVersion, match="no version 2"):
        Ledger.open(ledger.directory).segments(3)


def test_damage_of_version_0_cannot_be_repaired(ledger):
    flip(ledger.folders.path(0) / "entry.json")
    with pytest.raises(LedgerDamaged, match="version 0"):
        recover(ledger)


def test_a_delta_of_another_lineage_is_found(ledger, random_delta, tmp_path):
    ledger, other = fill(ledger, random_delta, 2), Ledger.create(tmp_path / "other", ledger.base)
    other.append(0, random_delta(50), EditorState(), (), {}, ("E", "p"))
    other.append(1, random_delta(2), EditorState(), (), {}, ("E", "p"))
    shutil.rmtree(ledger.folders.path(2))
    shutil.copytree(other.folders.path(2), ledger.folders.path(2))
    assert Ledger.open(ledger.directory).verify(2) == ["its fingerprint is not that of its delta after version 1"]


def test_leftovers_of_a_killed_writer_are_removed(ledger, random_delta):
    ledger = fill(ledger, random_delta, 1)
    (ledger.directory / "versions" / ".new-00000002").mkdir()
    (ledger.directory / "snapshots" / ".new-00000002.safetensors").write_bytes(b"half")
    (ledger.directory / ".new-HEAD").write_bytes(b"half")
    (ledger.directory / ".new-HEAD.lock").touch()
    (ledger.directory / ".new-pulled" / "00000002").mkdir(parents=True)
    assert recover(ledger).notes == ("removed 4 half-written files of a writer that was stopped",)
    assert not list(ledger.directory.rglob(".new-*"))


def test_a_ledger_of_the_first_format_is_readable(ledger, random_delta):
    """The first format has no digests, no index, whole states, and snapshots without states."""
    ledger = fill(ledger, random_delta, 6)
    states = {number: ledger.state(number) for number in range(1, 7)}
    (ledger.directory / "index").unlink()
    for path in ledger.snapshots.folder.glob("*.state.*"):
        path.unlink()
    for number in range(7):
        entry = json.loads((ledger.folders.path(number) / "entry.json").read_text())
        del entry["files"], entry["digest"]
        (ledger.folders.path(number) / "entry.json").write_text(json.dumps(entry, indent=1))
        if number:
            states[number].save(ledger.folders.path(number) / STATE)
    (ledger.directory / "HEAD").write_text('{"version": 5, "after": 6}')
    older = Ledger.open(ledger.directory, 4)
    assert (older.head, recover(older).quarantined) == (5, ())
    assert all(older.verify(number) == [] for number in range(7))
    assert torch.equal(older.state(5).tensors["past"], states[5].tensors["past"])
    assert append(older, random_delta).parent == 5
    cut(older.folders.path(6) / DELTA)
    assert any(DELTA in fault for fault in older.verify(6))
