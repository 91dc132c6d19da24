"""The ledger: versions, branches, the head, snapshots, edits by id, and writers at the same time."""

from __future__ import annotations

import json
import os
import pickle
import threading

import pytest
import torch

from errata import durable
from errata.delta.accumulator import EditedModel
from errata.edit import Code, Edit, EditRejected, Fault
from errata.editors.state import EditorState
from errata.guard.limits import Breach, VersionRefused
from errata.ledger import REFUSALS, Ledger, LedgerConflict, UnknownVersion, read_segments
from errata.ledger.recovery import recover
from errata.model.language_model import load
from errata.model.matrices import find_matrices
from tests.unit.ledger.damage import digests

STATE = EditorState(3, {"past": torch.arange(6.0).view(2, 3)})


def append(ledger, delta, parent=None, edits=(), state=STATE):
    parent = ledger.head if parent is None else parent
    return ledger.append(parent, delta, state, edits, {"efficacy": 1.0}, ("RLEdit", "test"))


def fill(ledger, random_delta, count):
    return [append(ledger, random_delta(100 + ledger.newest)) for _ in range(count)]


def test_version_0_is_the_base(ledger):
    assert (ledger.head, ledger.newest, ledger.chain(0), ledger.segments(0)) == (0, 0, [], [])
    assert ledger.version(0).parent is None
    assert ledger.version(0).fingerprint == "base"
    assert ledger.state(0) is None
    assert ledger.delta(0).parts == {}


def test_create_again_over_the_same_base_opens_it_and_over_another_refuses(ledger, random_delta):
    fill(ledger, random_delta, 1)
    assert Ledger.create(ledger.directory, ledger.base).head == 1
    for other, says in (
        ({"model": "m"}, f"is over {ledger.base['model']}, not m: give that model, or another ledger"),
        ({"fingerprint": "other"}, r"is over other weights \(SHA-256 base\) than .* has now \(other\): give the folder"),
        ({"matrices": ["m"]}, r"holds edits of model.*0.*, .*1\.mlp\.down_proj, and this editor changes m: give the settings"),
        ({"matrices": list("abcdef")}, "this editor changes a, b, c, d and 2 other matrices: give"),
    ):
        with pytest.raises(ValueError, match=says) as refused:
            Ledger.create(ledger.directory, {**ledger.base, **other})
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="fingerprint"):
        Ledger.create(ledger.directory / "new", {"model": "m", "matrices": ["x"]})
    with pytest.raises(FileNotFoundError):
        Ledger.open(ledger.directory / "none")


def test_a_version_is_read_as_it_was_appended(ledger, random_delta):
    edits = (Edit("a b", "c", subject="a", rephrasings=("d",), id="e1"), Edit("x\u2028y", "z"))
    delta = random_delta(1)
    made = append(ledger, delta, edits=edits)
    found = Ledger.open(ledger.directory).version(1)
    assert found == made
    assert found.edits == edits
    assert (found.number, found.parent, found.editor, found.plan, found.scorecard) == (
        1,
        0,
        "RLEdit",
        "test",
        {"efficacy": 1.0},
    )
    assert (found.num_bytes, found.ranks, found.norms) == (delta.num_bytes, delta.ranks(), delta.norms())
    assert found.created.endswith("+00:00")
    assert ledger.delta(1).digest() == delta.digest()
    state = ledger.state(1)
    assert state.num_edits == 3
    assert torch.equal(state.tensors["past"], STATE.tensors["past"])


def test_factors_that_share_memory_are_stored(ledger, random_delta):
    part = next(iter(random_delta(1).parts.values()))
    shared = type(random_delta(1))({"one": part, "two": part})
    append(ledger, shared, state=EditorState(1, {"a": part.U_OR, "b": part.U_OR}))
    assert ledger.delta(1).digest() == shared.digest()


def test_a_stale_parent_raises_a_conflict(ledger, random_delta):
    fill(ledger, random_delta, 2)
    with pytest.raises(LedgerConflict) as conflict:
        append(ledger, random_delta(0), parent=1)
    assert ledger.newest == 2
    copy = pickle.loads(pickle.dumps(conflict.value))
    assert (copy.parent, copy.head, str(copy)) == (1, 2, str(conflict.value))


def test_a_branch_from_before_the_head_is_appended_in_one_call(ledger, random_delta):
    fill(ledger, random_delta, 3)
    arguments = (random_delta(0), STATE, (), {}, ("RLEdit", "test"))
    with pytest.raises(LedgerConflict):
        ledger.append(1, *arguments, expected_head=2)
    with pytest.raises(UnknownVersion, match="7"):
        ledger.append(7, *arguments, expected_head=3)
    made = ledger.append(1, *arguments, expected_head=3)
    assert (made.number, made.parent, ledger.head, ledger.chain(4)) == (4, 1, 4, [1, 4])
    ledger.move_head(2)
    assert ledger.append(0, *arguments, expected_head=2).number == Ledger.open(ledger.directory).head == 5


def test_one_of_many_writers_on_a_parent_succeeds(ledger, random_delta):
    outcomes = []

    def write(seed):
        try:
            outcomes.append(append(Ledger.open(ledger.directory), random_delta(seed), parent=0).number)
        except LedgerConflict:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [1, None, None, None]


def test_a_crash_in_append_leaves_no_version(ledger, random_delta, monkeypatch):
    fill(ledger, random_delta, 1)

    def fail(*_):
        raise OSError("power cut")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="power cut"):
        append(ledger, random_delta(0))
    monkeypatch.undo()
    assert (ledger.head, Ledger.open(ledger.directory).newest) == (1, 1)
    assert append(ledger, random_delta(0)).number == 2


def test_leftovers_of_a_killed_writer_are_ignored_and_removed(ledger, random_delta):
    leftover = ledger.directory / "versions" / ".new-00000001"
    leftover.mkdir()
    (leftover / "entry.json").write_text("{")
    assert (ledger.head, len(ledger.versions())) == (0, 1)
    append(ledger, random_delta(0))
    assert ledger.version(1).number == 1
    recover(ledger)
    assert not leftover.exists() and ledger.newest == 1


def test_after_a_rollback_the_next_version_follows_the_head(ledger, random_delta):
    fill(ledger, random_delta, 10)
    ledger.move_head(5)
    assert (ledger.head, ledger.newest) == (5, 10)
    assert Ledger.open(ledger.directory).head == 5
    made = append(ledger, random_delta(0))
    assert (made.number, made.parent, ledger.head) == (11, 5, 11)
    assert ledger.chain(11) == [1, 2, 3, 4, 5, 11]
    assert digests(ledger.segments(11)) == digests([ledger.delta(n) for n in ledger.chain(11)])
    ledger.move_head(10)
    assert (ledger.head, ledger.chain(10)) == (10, list(range(1, 11)))
    moves = [json.loads(line) for line in (ledger.directory / "moves.jsonl").read_text().splitlines()]
    assert [(move["before"], move["version"], move["after"]) for move in moves] == [(10, 5, 10), (11, 10, 11)]
    ledger.move_head(0)
    assert append(ledger, random_delta(0)).parent == 0


def test_unknown_versions_are_named(ledger):
    for ask in (ledger.version, ledger.delta, ledger.state, ledger.segments, ledger.move_head):
        for number in (7, -1):
            with pytest.raises(UnknownVersion, match=str(number)):
                ask(number)


def test_snapshots_give_the_same_bits_from_fewer_files(ledger, random_delta):
    fill(ledger, random_delta, 11)
    assert [path.parent.name for path in ledger.files_to(11)] == ["snapshots", "snapshots", "00000009", "00000010", "00000011"]
    assert [path.name for path in ledger.files_to(11)[:2]] == ["00000004.safetensors", "00000008.safetensors"]
    read = [delta for path in ledger.files_to(11) for delta in read_segments(path)]
    assert digests(read) == digests(ledger.segments(11)) == digests([ledger.delta(n) for n in ledger.chain(11)])
    sums = [sum(delta.parts[name].dense() for delta in read) for name in ledger.base["matrices"]]
    replayed = [sum(ledger.delta(n).parts[name].dense() for n in range(1, 12)) for name in ledger.base["matrices"]]
    assert all(torch.equal(one, other) for one, other in zip(sums, replayed, strict=True))
    assert len(ledger.files_to(6)) == 3
    assert digests(ledger.segments(6)) == digests([ledger.delta(n) for n in range(1, 7)])


def test_the_fingerprint_names_the_lineage(ledger, random_delta, tmp_path):
    other = Ledger.create(tmp_path / "other", ledger.base)
    for each in (ledger, other):
        append(each, random_delta(1))
        append(each, random_delta(2))
    assert [v.fingerprint for v in ledger.versions()] == [v.fingerprint for v in other.versions()]
    other.move_head(0)
    assert append(other, random_delta(2)).fingerprint != ledger.version(2).fingerprint


def test_an_edit_is_found_by_its_id(ledger, random_delta):
    append(ledger, random_delta(1), edits=[Edit("a", "b", id="one"), Edit("c", "d")])
    assert ledger.find_edit("one") == 1
    assert ledger.find_edit("two") is None
    append(Ledger.open(ledger.directory), random_delta(2), edits=[Edit("e", "f", id="two")])
    assert ledger.find_edit("two") == 2


def test_an_edit_is_found_in_the_live_chain_first(ledger, random_delta):
    one, two = Edit("a", "b", id="one"), Edit("c", "d", id="two")
    append(ledger, random_delta(1), edits=[one])
    append(ledger, random_delta(2), edits=[two])
    ledger.move_head(0)
    append(ledger, random_delta(3), edits=[one])
    assert (ledger.find_edit("one"), ledger.find_edit("two")) == (3, 2)
    ledger.move_head(2)
    assert (ledger.find_edit("one"), ledger.find_edit("two")) == (1, 2)
    ledger.move_head(0)
    assert (ledger.find_edit("one"), Ledger.open(ledger.directory).find_edit("one")) == (3, 3)


def test_a_retracted_version_is_not_the_head_and_holds_no_edit(ledger, random_delta):
    one = Edit("a", "b", id="one")
    append(ledger, random_delta(1))
    append(ledger, random_delta(2), edits=[one])
    assert ledger.find_edit("one") == 2 and ledger.retracted() == set()
    ledger.retract(2, 1)
    for each in (ledger, Ledger.open(ledger.directory)):
        assert (each.head, each.newest, each.retracted(), each.find_edit("one")) == (1, 2, {2}, None)
    assert [(move["before"], move["version"], move["withdrawn"]) for move in ledger.head_log()] == [(2, 1, 2)]
    assert (append(ledger, random_delta(2), edits=[one]).number, ledger.find_edit("one")) == (3, 3)
    ledger.retract(3, 1)
    assert (ledger.head, ledger.retracted(), ledger.find_edit("one")) == (1, {2, 3}, None)


def test_the_head_before_an_append_is_known_until_the_head_moves(ledger, random_delta):
    append(ledger, random_delta(1))
    append(ledger, random_delta(2))
    assert [ledger.head_before(number) for number in (0, 1, 2)] == [None, 0, 1]
    ledger.move_head(1)
    assert ledger.head_before(2) is None
    append(ledger, random_delta(1))
    append(ledger, random_delta(2))
    assert [ledger.head_before(number) for number in (1, 2, 3, 4)] == [None, None, 1, 3]
    ledger.retract(4, 3)
    append(ledger, random_delta(1))
    assert [ledger.head_before(number) for number in (4, 5)] == [None, 3]


def test_ancestors_of_the_head_cannot_be_retracted(ledger, random_delta):
    fill(ledger, random_delta, 3)
    for number, to in ((1, 3), (3, 3), (0, 1)):
        with pytest.raises(ValueError, match=f"version {number} cannot be retracted: version {to}"):
            ledger.retract(number, to)
    for number, to in ((9, 1), (3, 9)):
        with pytest.raises(UnknownVersion, match="9"):
            ledger.retract(number, to)
    assert (ledger.head, ledger.retracted(), list(ledger.head_log())) == (3, set(), [])


def test_a_number_that_readers_may_have_seen_is_not_used_again(ledger, random_delta, monkeypatch):
    """The disk fails after the rename, so that a replica may have served the version."""
    fill(ledger, random_delta, 1)
    reader, seen, sync = Ledger.open(ledger.directory), [], durable.sync

    def fail(path):
        if path == ledger.folders.root:
            seen.append(reader.version(reader.head))
            raise OSError("cannot be synced")
        sync(path)

    monkeypatch.setattr(durable, "sync", fail)
    with pytest.raises(OSError, match="cannot be synced"):
        append(ledger, random_delta(2), edits=[Edit("a", "b", id="one")])
    monkeypatch.undo()
    assert seen[0].number == 2
    for each in (ledger, reader, Ledger.open(ledger.directory)):
        assert (each.head, each.newest, each.find_edit("one")) == (1, 1, None)
    (version,) = ledger.quarantined()
    assert (version.number, version.was_live, version.faults) == (2, False, ("it could not be made durable: cannot be synced",))
    assert append(ledger, random_delta(3)).number == 3 == reader.head
    assert recover(ledger).quarantined == ()


def test_an_exported_version_is_a_plain_checkpoint(ledger, random_delta, model_dir, tmp_path):
    for seed in (1, 2):
        append(ledger, random_delta(seed, scale=0.1))
    ledger.export(2, tmp_path / "out" / "v2")
    exported, edited = load(tmp_path / "out" / "v2"), load(model_dir)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = edited.module(ids).logits
    EditedModel(edited.module, find_matrices(edited.module, ledger.base["matrices"])).set(ledger.segments(2))
    assert torch.equal(exported.module(ids).logits, edited.module(ids).logits)
    assert not torch.allclose(exported.module(ids).logits, before)
    assert exported.tokenizer("question answer").input_ids == edited.tokenizer("question answer").input_ids
    with pytest.raises(ValueError, match="not empty"):
        ledger.export(1, tmp_path / "out" / "v2")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["v2"]


def test_a_refusal_has_what_the_model_says(ledger):
    ineffective = EditRejected.of([Fault(0, "target", Code.INEFFECTIVE, "no", says="edited")])
    ledger.refuse(0, Edit("one", "x"), ineffective, "before")
    ledger.refuse(0, Edit("two", "x"), EditRejected("no", code=Code.UNSOLVABLE), "before")
    assert [record["says"] for record in ledger.refusals()] == ["edited", "before"], "that of the edited model comes first"


def test_a_refusal_is_kept_without_the_lists_of_its_edit(ledger):
    """One post may fill a MiB with rephrasings, and refusals are never deleted."""
    edit = Edit("one", "x", id="a", subject="one", aliases=("y",), rephrasings=("z" * 1000,), poster="ann")
    ledger.refuse(0, edit, EditRejected("no", code=Code.UNSOLVABLE))
    (record,) = ledger.refusals()
    assert record["edit"] == {"prompt": "one", "target": "x", "id": "a", "subject": "one", "poster": "ann"}


def test_a_torn_line_of_the_refusals_costs_no_other(ledger):
    refusal = VersionRefused([Breach("change", 9.0, 1.0, "too large")], {"ppl_ratio": 2.0})
    ledger.refuse(0, Edit("one", "x", id="a"), refusal)
    with (ledger.directory / REFUSALS).open("ab") as log:
        log.write(b'{"time": "2026')
    ledger.refuse(0, Edit("two\u2028lines", "x"), EditRejected("no room", field="prompt", code=Code.EDITOR_FAILED))
    found = list(Ledger.open(ledger.directory).refusals())
    assert [(r["edit"]["prompt"], r["reason"], r["code"], r["field"], r["parent"]) for r in found] == [
        ("one", "the guard refuses it: too large", "guard.change", None, 0),
        ("two\u2028lines", "no room", "editor_failed", "prompt", 0),
    ]
    assert [r["scores"] for r in found] == [{"ppl_ratio": 2.0}, {}] and not any("says" in r for r in found)
    assert ledger.newest == 0
