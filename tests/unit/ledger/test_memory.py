"""A ledger of changes of a memory: appended, snapshotted, rolled back, copied, repaired, exported and mirrored as any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.memory_delta import MemoryDelta
from errata.edit_memory.bank import Bank
from errata.edit_memory.hooks import bank_of
from errata.editors.state import EditorState
from errata.history.checkout import checked_out
from errata.history.diff import diff
from errata.ledger import Ledger, LedgerDamaged, read_segments
from errata.ledger.export import IN_MEMORY
from errata.ledger.recovery import recover
from errata.ledger.remote import pull, push
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.registry.version_card import description, metrics
from tests.unit.conftest import MATRICES
from tests.unit.edit_memory.records import a_change


def fill(ledger: Ledger, count: int) -> None:
    for number in range(count):
        change = a_change("again", f"fact {number}", seed=10 * number, dropped=(f"fact {number - 2}",))
        ledger.append(ledger.head, change, EditorState(number + 1), (), {}, ("state", ""))


def facts(bank: Bank | None) -> list[str]:
    return [] if bank is None else sorted(record.text for record in bank)


EXPECTED = {0: [], 1: ["again -> 0", "fact 0 -> 1"], 9: ["again -> 80", "fact 7 -> 71", "fact 8 -> 81"]}


def test_a_version_holds_the_records_of_its_chain(ledger: Ledger) -> None:
    fill(ledger, 9)
    assert ledger.snapshots.newest == 8
    for opened in (ledger, Ledger.open(ledger.directory)):
        assert {number: facts(opened.memory(number)) for number in EXPECTED} == EXPECTED
    apart = [delta for path in ledger.files_to(9, snapshots=False) for delta in read_segments(path)]
    together = [delta for path in ledger.files_to(9) for delta in read_segments(path)]
    assert [delta.digest() for delta in apart] == [delta.digest() for delta in together]
    assert len(ledger.files_to(9)) < len(apart) == 9


def test_the_fingerprint_depends_on_the_memory_of_every_version(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 3)
    other = Ledger.create(tmp_path / "other", ledger.base)
    other.append(0, a_change("other"), EditorState(1), (), {}, ("state", ""))
    assert other.version(1).fingerprint != ledger.version(1).fingerprint
    assert [ledger.verify(number) for number in range(4)] == [[]] * 4


def test_a_rollback_and_a_checkout_take_the_memory_along(ledger: Ledger, tiny_model: LanguageModel) -> None:
    fill(ledger, 9)
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, MATRICES))
    edited.set(ledger.segments(9))
    with checked_out(edited, ledger, 9) as checkout:
        for number in (1, 0, 9, 1):
            checkout.to(number)
            assert facts(bank_of(tiny_model.module)) == EXPECTED[number]
    assert facts(bank_of(tiny_model.module)) == EXPECTED[9]
    ledger.move_head(1)
    edited.set(ledger.segments(ledger.head))
    assert facts(bank_of(tiny_model.module)) == EXPECTED[1]
    edited.set([])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.module.modules())


def test_a_damaged_memory_is_found_and_a_damaged_snapshot_is_rebuilt(ledger: Ledger) -> None:
    fill(ledger, 9)
    ledger.snapshots.path(8).write_bytes(b"damaged")
    recovered = recover(Ledger.open(ledger.directory))
    assert any("snapshot up to version 8 was damaged" in note for note in recovered.notes)
    assert facts(Ledger.open(ledger.directory).memory(9)) == EXPECTED[9]
    path = ledger.folders.path(9) / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(LedgerDamaged, match="version 9 is damaged"):
        Ledger.open(ledger.directory).delta(9)


def test_a_copy_holds_the_memory(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 9)
    assert push(ledger.directory, f"file://{tmp_path}/remote") == 10
    assert pull(f"file://{tmp_path}/remote", tmp_path / "copy") == 10
    copy = Ledger.open(tmp_path / "copy")
    assert facts(copy.memory(9)) == EXPECTED[9] and copy.version(9).fingerprint == ledger.version(9).fingerprint


def test_an_export_says_which_edits_it_does_not_hold(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 1)
    base = Path(ledger.base["model"])
    ledger.export(0, tmp_path / "unedited")
    assert not (tmp_path / "unedited" / IN_MEMORY).exists()
    ledger.export(1, tmp_path / "out")
    said = json.loads((tmp_path / "out" / IN_MEMORY).read_text())
    assert said["edits"] == EXPECTED[1] and "does not answer by these edits" in said["note"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_a_version_of_a_memory_has_a_card_and_a_difference_without_norms(ledger: Ledger) -> None:
    fill(ledger, 2)
    version = ledger.version(2)
    assert version.num_bytes > 0 and (version.ranks, version.norms) == ({}, {})
    assert metrics(version)["num_bytes"] == version.num_bytes and "Version 2" in description(version)
    assert diff(ledger, 0, 2)["norms"] == {}


def test_a_memory_without_records_is_no_memory(ledger: Ledger) -> None:
    fill(ledger, 1)
    ledger.append(1, MemoryDelta("state", a_change().site, (), ("again", "fact 0")), EditorState(2), (), {}, ("state", ""))
    assert ledger.memory(2) is None and torch.equal(torch.tensor(ledger.chain(2)), torch.tensor([1, 2]))
