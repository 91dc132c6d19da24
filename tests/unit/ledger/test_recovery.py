"""Files of a ledger that are cut off, changed, emptied or gone: what is noticed, what is mended, and what is never lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from errata.edit import Edit
from errata.editors.state import EditorState
from errata.ledger import Ledger, LedgerDamaged, UnknownVersion, read_segments
from errata.ledger.recovery import recover

DELTA, STATE = "delta.safetensors", "state.safetensors"


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
    """A version with one edit, of its number; the state has grown by two rows since its parent."""
    parent = ledger.head if parent is None else parent
    before = ledger.state(parent) or EditorState()
    number = ledger.newest + 1
    rows = torch.randn(2, 3, generator=torch.Generator().manual_seed(number))
    edits = (Edit(f"prompt {number}", "target", id=f"id-{number}", poster="ada"),)
    state = before.grown(1, {"past": rows}, {})
    return ledger.append(parent, random_delta(number), state, edits, {"efficacy": 1.0}, ("E", "p"), expected_head)


def fill(ledger, random_delta, count):
    for _ in range(count):
        append(ledger, random_delta)
    return Ledger.open(ledger.directory, ledger.snapshot_every)


def digests(deltas):
    return [delta.digest() for delta in deltas]


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file but the lock, by name."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != "lock"}


def test_a_whole_ledger_is_left_as_it_is(ledger, random_delta):
    fill(ledger, random_delta, 9)
    ledger.move_head(7, by="ada")
    before = files_of(ledger.directory)
    found = recover(Ledger.open(ledger.directory))
    assert (found.head, found.quarantined, found.notes) == (7, (), ())
    assert files_of(ledger.directory) == before
    assert all(ledger.verify(number) == [] for number in range(10))


@damages
@pytest.mark.parametrize("name", ["entry.json", DELTA, STATE, "edits.jsonl"])
def test_a_damaged_newest_version_is_set_aside(ledger, random_delta, damage, name):
    ledger = fill(ledger, random_delta, 6)
    damage(ledger.folders.path(6) / name)
    left = {path.name: path.read_bytes() for path in ledger.folders.path(6).iterdir()}
    assert any(name in fault for fault in ledger.verify(6))
    found = recover(Ledger.open(ledger.directory))
    (gone,) = found.quarantined
    assert (found.head, gone.number, [edit.id for edit in gone.edits]) == (5, 6, ["id-6"])
    assert gone.edits[0].poster == "ada" and any(name in fault for fault in gone.faults)
    assert gone.path.name == "00000006.corrupt"
    assert [(a.number, a.edits, a.path) for a in Ledger.open(ledger.directory).quarantined()] == [(6, gone.edits, gone.path)]
    assert {path.name: path.read_bytes() for path in gone.path.iterdir()} == left
    for each in (ledger, Ledger.open(ledger.directory, 4)):
        assert (each.head, each.newest, [v.number for v in each.versions()][-1]) == (5, 5, 5)
    again = Ledger.open(ledger.directory, 4)
    with pytest.raises(UnknownVersion, match=r"quarantined as .*00000006\.corrupt"):
        again.version(6)
    assert again.find_edit("id-6") is None
    assert (append(again, random_delta).number, again.chain(7)) == (7, [1, 2, 3, 4, 5, 7])
    assert [ledger.newest, ledger.head, Ledger.open(ledger.directory).head, again.find_edit("id-5")] == [7, 7, 7, 5]
    assert recover(Ledger.open(ledger.directory)).quarantined == ()


def test_the_edits_of_a_damaged_version_are_known_as_far_as_they_can_be_read(ledger, random_delta):
    edits = [Edit(f"p{i}", "t", id=str(i)) for i in range(3)]
    ledger.append(0, random_delta(1), EditorState(), edits, {}, ("E", "p"))
    (ledger.directory / "index").unlink()
    lines = (ledger.folders.path(1) / "edits.jsonl").read_bytes().split(b"\n")
    (ledger.folders.path(1) / "edits.jsonl").write_bytes(b"\n".join([lines[0], b"\xff" + lines[1], lines[2][:9]]))
    (gone,) = recover(Ledger.open(ledger.directory)).quarantined
    assert [edit.id for edit in gone.edits] == ["0"]


def test_several_damaged_versions_are_set_aside_one_after_the_other(ledger, random_delta):
    ledger = fill(ledger, random_delta, 7)
    for number in (6, 7):
        empty(ledger.folders.path(number) / "entry.json")
    found = recover(ledger)
    assert (found.head, [gone.number for gone in found.quarantined]) == (5, [7, 6])
    assert append(ledger, random_delta).number == 8


def test_a_newest_version_whose_folder_is_gone_leaves_its_number_unused(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    shutil.rmtree(ledger.folders.path(3))
    (gone,) = recover(ledger).quarantined
    assert (gone.number, gone.faults, [e.id for e in gone.edits]) == (3, ("its folder is missing",), ["id-3"])
    assert append(ledger, random_delta).number == 4


def lose(ledger, number):
    shutil.rmtree(ledger.folders.path(number))


def tear(ledger, number):
    cut(ledger.folders.path(number) / DELTA)


@pytest.mark.parametrize("ruin", [lose, tear])
@pytest.mark.parametrize("back_to", [None, 1, 2, 3])
def test_what_was_set_aside_says_whether_the_head_came_from_it(ledger, random_delta, ruin, back_to):
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
    assert {gone.number: gone.was_live for gone in found.quarantined} == wanted[back_to] and found.head == 1
    now, later = (
        {gone.number: (gone.was_live, gone.faults) for gone in each}
        for each in (found.quarantined, Ledger.open(ledger.directory).quarantined())
    )
    assert now == later and all(faults for _, faults in later.values())


def test_a_version_that_a_branch_has_left_was_not_live(ledger, random_delta):
    ledger = fill(ledger, random_delta, 2)
    append(ledger, random_delta, parent=1, expected_head=2)
    ledger.move_head(2)
    tear(ledger, 3)
    assert [(gone.number, gone.was_live) for gone in recover(ledger).quarantined] == [(3, False)]
    assert ledger.head == 2


@pytest.mark.parametrize("note", [None, b"{", b'{"was_live": false, "faults": [], "digest": "0"}'])
def test_a_version_set_aside_without_a_note_counts_as_live(ledger, random_delta, note):
    ledger = fill(ledger, random_delta, 2)
    ledger.move_head(1)
    tear(ledger, 2)
    assert not recover(ledger).quarantined[0].was_live
    path = ledger.folders.quarantine_path(2).with_name("00000002.corrupt.json")
    path.unlink() if note is None else path.write_bytes(note)
    assert [(gone.number, gone.was_live, gone.faults) for gone in ledger.quarantined()] == [(2, True, ())]


def test_a_recovery_that_is_stopped_after_the_note_is_taken_up_again(ledger, random_delta, monkeypatch):
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
    assert [gone.was_live for gone in recover(again).quarantined] == [gone.was_live for gone in again.quarantined()] == [False]


def test_a_version_that_cannot_be_read_off_the_live_chain_hides_no_other(ledger, random_delta):
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


def test_a_withdrawal_that_was_cut_off_is_finished(ledger, random_delta, monkeypatch):
    ledger = fill(ledger, random_delta, 2)
    ledger.move_head(1)
    append(ledger, random_delta, parent=2, expected_head=1)

    def fail(*_):
        raise OSError("power cut")

    monkeypatch.setattr("errata.durable.os.replace", fail)  # the log has its line, HEAD is as it was
    with pytest.raises(OSError, match="power cut"):
        ledger.retract(3, 2)
    monkeypatch.undo()
    assert ledger.head == 3
    found = recover(Ledger.open(ledger.directory))
    assert (found.head, found.notes) == (2, ("version 3 was being retracted; the head is now version 2",))
    ledger.move_head(3, by="ada")
    assert recover(ledger).head == 3


def test_a_damaged_version_that_replaced_the_head_gives_it_back(ledger, random_delta):
    ledger = fill(ledger, random_delta, 5)
    append(ledger, random_delta, parent=2, expected_head=5)
    flip(ledger.folders.path(6) / DELTA)
    assert recover(ledger).head == 5


def test_a_damaged_head_that_is_not_the_newest(ledger, random_delta):
    ledger = fill(ledger, random_delta, 4)
    append(ledger, random_delta, parent=2, expected_head=4)
    ledger.move_head(4)
    flip(ledger.folders.path(4) / STATE)
    found = recover(Ledger.open(ledger.directory))
    assert (found.head, [gone.number for gone in found.quarantined], ledger.newest) == (3, [4], 5)
    assert "the head was moved to version 4, which does not exist; the head is now version 3" in found.notes
    assert (ledger.head, list(ledger.head_log())[-1]["by"]) == (3, "recovery")


def test_a_damaged_head_that_others_follow_is_an_error_that_says_what_to_do(ledger, random_delta):
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


def test_a_version_in_the_middle_that_is_gone_is_named(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    shutil.rmtree(ledger.folders.path(2))
    with pytest.raises(UnknownVersion, match="no version 2"):
        Ledger.open(ledger.directory).segments(3)


def test_without_version_0_there_is_nothing_to_fall_back_to(ledger):
    flip(ledger.folders.path(0) / "entry.json")
    with pytest.raises(LedgerDamaged, match="version 0"):
        recover(ledger)


def test_a_delta_of_another_lineage_is_noticed(ledger, random_delta, tmp_path):
    ledger, other = fill(ledger, random_delta, 2), Ledger.create(tmp_path / "other", ledger.base)
    other.append(0, random_delta(50), EditorState(), (), {}, ("E", "p"))
    other.append(1, random_delta(2), EditorState(), (), {}, ("E", "p"))
    shutil.rmtree(ledger.folders.path(2))
    shutil.copytree(other.folders.path(2), ledger.folders.path(2))
    assert Ledger.open(ledger.directory).verify(2) == ["its fingerprint is not that of its delta after version 1"]


@damages
@pytest.mark.parametrize("kind", ["path", "state_path"])
def test_a_damaged_snapshot_gives_the_same_bits_and_is_made_again(ledger, random_delta, damage, kind):
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


@pytest.mark.parametrize("damage", [cut, flip, empty, remove], ids=lambda d: d.__name__)
def test_a_damaged_head_file_is_told_and_the_log_of_moves_knows_better(ledger, random_delta, damage):
    ledger = fill(ledger, random_delta, 5)
    ledger.move_head(2, by="ada")
    damage(ledger.directory / "HEAD")
    assert ledger.head == 2
    found = recover(ledger)
    assert found.head == 2 and found.notes[0].startswith("HEAD ") and found.notes[0].endswith("the head is now version 2")
    assert [move["by"] for move in ledger.head_log()] == ["ada", "recovery"]
    assert (recover(Ledger.open(ledger.directory)).notes, append(ledger, random_delta).parent) == ((), 2)


def test_without_head_file_and_log_the_newest_version_counts(ledger, random_delta):
    ledger = fill(ledger, random_delta, 5)
    ledger.move_head(2)
    (ledger.directory / "HEAD").write_text('{"version": 2, "after"')
    (ledger.directory / "moves.jsonl").write_bytes(b"\xff\xfe\n{")
    found = recover(ledger)
    assert found.head == ledger.head == 5
    assert found.notes[0] == "2 lines of moves.jsonl cannot be read and are skipped"
    assert "HEAD cannot be read" in found.notes[1] and "the head is now version 5" in found.notes[1]


def test_half_a_line_of_the_moves_costs_no_other(ledger, random_delta):
    ledger = fill(ledger, random_delta, 3)
    ledger.move_head(1, by="ada")
    with (ledger.directory / "moves.jsonl").open("ab") as log:
        log.write(b'{"version": 3, "af')
    ledger.move_head(2, by="bo")
    assert [(m["before"], m["version"], m["by"]) for m in ledger.head_log()] == [(3, 1, "ada"), (1, 2, "bo")]
    assert "1 lines of moves.jsonl" in recover(ledger).notes[0]


@damages
def test_a_damaged_index_changes_nothing_and_is_mended(ledger, random_delta, damage):
    ledger = fill(ledger, random_delta, 6)
    versions = ledger.versions()
    damage(ledger.directory / "index")
    assert Ledger.open(ledger.directory).versions() == versions
    assert append(Ledger.open(ledger.directory), random_delta).number == 7
    assert "the index lacked" in recover(Ledger.open(ledger.directory)).notes[0]
    again = Ledger.open(ledger.directory)
    assert sorted(again.index.lines) == list(range(8))
    assert again.versions()[:7] == versions and recover(again).notes == ()


def test_leftovers_of_a_killed_writer_are_removed(ledger, random_delta):
    ledger = fill(ledger, random_delta, 1)
    (ledger.directory / "versions" / ".new-00000002").mkdir()
    (ledger.directory / "snapshots" / ".new-00000002.safetensors").write_bytes(b"half")
    (ledger.directory / ".new-HEAD").write_bytes(b"half")
    assert recover(ledger).notes == ("removed 3 half-written files of a writer that was stopped",)
    assert not list(ledger.directory.rglob(".new-*"))


def test_a_ledger_of_before_there_were_digests_stays_readable(ledger, random_delta):
    """As the first format was: no digests, no index, whole states, no joined states."""
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
