"""A change of a memory: as a value, on disk, and in a ledger beside the weights' deltas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from errata.delta.accumulator import EditedModel
from errata.delta.kinds import added_up, delta_from_tensors, joined_in_series, load_delta, stored, weights_alone
from errata.delta.memory_delta import ABOUT, MemoryDelta, between, held_after, one_change
from errata.delta.parts import LowRank, Sparse
from errata.delta.weight_delta import WeightDelta
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.encoder import NAME
from errata.edit_memory.hooks import bank_of
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.edit_memory.records import SITE, a_change, a_record


def content(bank: Bank | None) -> dict[str, str]:
    return {} if bank is None else {record.fact: record.text for record in bank}


def test_a_change_is_saved_and_read_with_the_same_bits(tmp_path: Path) -> None:
    change = a_change("a", "b", dropped=("ü",))
    change.save(tmp_path / "delta.safetensors")
    read = load_delta(tmp_path / "delta.safetensors")
    assert isinstance(read, MemoryDelta) and read.digest() == change.digest() == stored(change).digest()
    assert (read.kind, read.site, read.dropped) == ("state", SITE, ("ü",))
    for one, other in zip(read.records, change.records, strict=True):
        assert (one.fact, one.text) == (other.fact, other.text)
        assert all(torch.equal(one.rows[name], tensor) for name, tensor in other.rows.items())


def test_later_fields_of_records_are_saved_and_older_files_have_none(tmp_path: Path) -> None:
    plain = a_change("a", "b")
    named = MemoryDelta("state", SITE, tuple(replace(record, subject="ü", edit="7", answer="x") for record in plain.records))
    named.save(tmp_path / "delta.safetensors")
    read = load_delta(tmp_path / "delta.safetensors")
    assert isinstance(read, MemoryDelta)
    assert [(one.subject, one.edit, one.answer) for one in read.records] == [("ü", "7", "x")] * 2
    assert plain.digest() == "031ad9bd4214ee90bdcb26666434deca750d211259be8d1f93fecee76ad6436e", (
        "a record without later fields has the digest of earlier releases"
    )
    assert named.digest() != plain.digest()
    change = between(held_after([plain]), held_after([named]))
    assert change is not None and len(change.records) == 2, "a record with another answer is another one"


def test_the_other_wordings_of_a_record_are_saved_with_a_key_each(tmp_path: Path) -> None:
    def a_question(*rephrasings: str) -> Record:
        count = 1 + len(rephrasings)
        rows = {"key": torch.eye(count, 384), "threshold": torch.full((count,), 0.5)}
        return Record('"a"', "b", rows, "a", "", "x", rephrasings=rephrasings)

    plain, named = MemoryDelta("answer", NAME, (a_question(),)), MemoryDelta("answer", NAME, (a_question("c", "ü"),))
    named.save(tmp_path / "delta.safetensors")
    read = load_delta(tmp_path / "delta.safetensors")
    assert isinstance(read, MemoryDelta) and read.digest() == named.digest() != plain.digest()
    assert read.records[0].wordings == ("a", "c", "ü") and read.num_bytes == named.num_bytes > plain.num_bytes
    read.check()
    both = MemoryDelta("answer", NAME, (a_question("c"), replace(a_question(), fact='"d"')))
    assert [record.rephrasings for record in stored(both).records] == [("c",), ()]  # type: ignore[union-attr]
    change = between(held_after([plain]), held_after([named]))
    assert change is not None and len(change.records) == 1, "a record with another wording is another one"
    lacking = MemoryDelta("answer", NAME, (replace(a_question("c"), rephrasings=()),))
    with pytest.raises(ValueError, match="other keys than one vector of 384 for each wording"):
        lacking.check()


def test_records_of_another_encoder_are_refused() -> None:
    rows = {"key": torch.zeros(1, 384), "threshold": torch.ones(1)}
    MemoryDelta("text", NAME, (Record("a", "b", rows),)).check()
    with pytest.raises(ValueError, match=f"encoded by another, and this release has {NAME}: make the edits again"):
        MemoryDelta("text", "another", (Record("a", "b", rows),)).check()
    with pytest.raises(ValueError, match=r"record of a has no answer; .* other keys than one vector of 384"):
        short = {"key": torch.zeros(1, 8), "threshold": torch.ones(1)}
        MemoryDelta("answer", NAME, (Record("a", "b", rows), Record("c", "d", short, answer="e"))).check()


def test_the_digest_covers_every_field() -> None:
    change = a_change("a", "b")
    others = [
        a_change("a"),
        a_change("a", "c"),
        a_change("a", "b", seed=1),
        a_change("a", "b", dropped=("c",)),
        MemoryDelta("state", "other", change.records),
        MemoryDelta("state", SITE, (*change.records[:1], Record("b", "another text", change.records[1].rows))),
    ]
    assert len({change.digest(), *(one.digest() for one in others)}) == 1 + len(others)


def test_the_digest_of_a_change_of_weights_is_that_of_earlier_releases() -> None:
    """Check that the fingerprints of ledgers written before stay valid."""
    factors = LowRank(torch.arange(6.0).view(3, 2), torch.arange(8.0).view(4, 2))
    delta = WeightDelta({"a.b": factors, "c": Sparse(torch.tensor([0, 5]), torch.tensor([1.0, -2.0]), (2, 3))})
    assert delta.digest() == "0145c73f5b70dcc88a8f983c8d3f8e2a2256a7636b2d3101f2259c80d56ca380"


def test_a_later_record_of_a_fact_replaces_the_earlier_one() -> None:
    bank = held_after([a_change("a", "b"), a_change("b", seed=7), a_change("c", dropped=("a",), seed=3)])
    assert content(bank) == {"b": "b -> 7", "c": "c -> 3"}


def test_joined_changes_do_what_the_single_ones_do() -> None:
    before = held_after([a_change("a", "x")])
    changes = [a_change("b", dropped=("a",)), a_change("a", seed=5), a_change(dropped=("b", "x"))]
    for join in (one_change, added_up, joined_in_series):
        joined = join(changes)
        assert isinstance(joined, MemoryDelta)
        assert content(joined.after(before)) == content(held_after(changes, before)) == {"a": "a -> 5"}


def test_the_change_between_two_banks_leads_from_one_to_the_other() -> None:
    one, other = held_after([a_change("a", "b", "c")]), held_after([a_change("a"), a_change("b", "d", seed=9)])
    change = between(one, other)
    assert change is not None and [record.fact for record in change.records] == ["b", "d"] and change.dropped == ("c",)
    assert content(change.after(one)) == content(other)
    emptied, made = between(one, None), between(None, one)
    assert emptied is not None and content(emptied.after(one)) == {}
    assert made is not None and content(made.after(None)) == content(one)
    assert between(None, None) is None


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("kind", "spoken", "this release knows state"),
        ("facts", ["a"], "do not fit its facts"),
        ("counts", [1, 1], "do not fit its facts"),
        ("dropped", None, "no change of a memory"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, field: str, value: object, says: str) -> None:
    tensors = a_change("a", "b").to_tensors()
    about = json.loads(bytes(tensors[ABOUT].tolist())) | {field: value}
    save_file(tensors | {ABOUT: torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)}, tmp_path / "file")
    with pytest.raises(ValueError, match=says):
        load_delta(tmp_path / "file")


def test_a_change_that_does_not_fit_the_model_is_refused(tiny_model: LanguageModel) -> None:
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, ("layers.1.mlp.down_proj",)))
    record = a_record("a")
    short = Record("a", "", {**record.rows, "token": record.rows["token"][:1]})
    for wrong, says in (
        (MemoryDelta("state", "model.layers.0.mlp.down_proj", (record,)), "is not an editable matrix"),
        (MemoryDelta("state", SITE, (short,)), "do not fit each other"),
        (MemoryDelta("state", SITE, (Record("a", "", {"key": record.rows["key"]}),)), "other tensors than key, token"),
    ):
        for act in (edited.check, edited.add, lambda delta: edited.set([a_change("b"), delta])):
            with pytest.raises(ValueError, match=says):
                act(wrong)
        assert bank_of(tiny_model.module) is None
    with pytest.raises(ValueError, match="one ledger holds one memory"):
        MemoryDelta("state", "other").after(held_after([a_change("a")]))


def test_a_change_of_weights_is_known_from_one_of_a_memory() -> None:
    weights = WeightDelta({"m": LowRank(torch.ones(2, 1), torch.ones(2, 1))})
    assert isinstance(added_up([WeightDelta({}), a_change("a")]), MemoryDelta)
    assert weights_alone(weights, "it") is weights
    with pytest.raises(ValueError, match="memory of kind state, and this engine takes"):
        weights_alone(a_change("a"), "this engine")
    assert isinstance(delta_from_tensors({}), WeightDelta)
