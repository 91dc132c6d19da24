"""The index: edits as they were appended, and what is damaged."""

from __future__ import annotations

import tracemalloc

import pytest

from errata.edit import Edit, Probe
from errata.editors.state import EditorState
from errata.ledger import Ledger
from errata.ledger.recovery import recover
from errata.text.dialogue import Message
from tests.unit.ledger.damage import append, damages, fill

CHAT = Edit(
    "Who?", "Ann", id="e", poster="bob", form="chat", aliases=("Anna",), answer="It is Ann.", rephrasings=("Who is it?",)
)
LATER = Edit("Who?", "Ann", form="chat", before=(Message("system", "Be brief."),), aliases=("Anna",))
PROBES = Edit("A is", "B", "A", locality=(Probe("C is", "D"),), portability=(Probe("B was", "A", "reverse"),), aliases=("b",))


@pytest.mark.parametrize("edit", [Edit("A is", "B"), CHAT, LATER, PROBES], ids=["plain", "chat", "messages", "probes"])
def test_an_edit_is_read_as_it_was_appended(ledger, random_delta, edit):
    """Reverts compare edits, and look them up in sets."""
    ledger.append(0, random_delta(0), EditorState(), [edit], {}, ("RLEdit", ""))
    again = Ledger.open(ledger.directory)
    assert again.version(1).edits == again.index.edits(1) == (edit,) and {*again.version(1).edits} == {edit}
    (ledger.directory / "index").unlink()
    assert Ledger.open(ledger.directory).version(1).edits == (edit,)


@pytest.mark.parametrize("fields", [{}, {"locality": (Probe("C is", " D"),)}], ids=["plain", "probes"])
def test_an_edit_that_was_not_clean_is_read_alike_from_index_and_version(ledger, random_delta, fields):
    """A version of an earlier release may hold a target with a blank before it."""
    edit = Edit("A is", " B", " A", form="both", aliases=("b\n",), answer="It is B. ", **fields)
    appended = ledger.append(0, random_delta(0), EditorState(), [edit], {}, ("RLEdit", ""))
    indexed = Ledger.open(ledger.directory).version(1)
    (ledger.directory / "index").unlink()
    assert indexed.edits == Ledger.open(ledger.directory).version(1).edits == appended.edits
    (found,) = indexed.edits
    assert (found.target, found.subject, found.aliases, found.answer) == ("B", "A", ("b",), "It is B.")
    assert not list(found.faults())


@damages
def test_a_damaged_index_is_ignored_and_repaired(ledger, random_delta, damage):
    ledger = fill(ledger, random_delta, 6)
    versions = ledger.versions()
    damage(ledger.directory / "index")
    assert Ledger.open(ledger.directory).versions() == versions
    assert append(Ledger.open(ledger.directory), random_delta).number == 7
    assert "the index lacked" in recover(Ledger.open(ledger.directory)).notes[0]
    again = Ledger.open(ledger.directory)
    assert sorted(again.index.places) == list(range(8))
    assert again.versions()[:7] == versions and recover(again).notes == ()


def test_a_line_that_another_process_replaced_is_not_read(ledger, random_delta):
    """A worker that recovers writes the index again while replicas have it open: their places are then of other lines."""
    ledger = fill(ledger, random_delta, 6)
    reader = Ledger.open(ledger.directory)
    assert reader.index.newest == 6
    lines = (ledger.directory / "index").read_bytes().splitlines(keepends=True)
    (ledger.directory / "index").write_bytes(b"".join(lines[::-1]))
    assert reader.versions() == ledger.versions()
    (ledger.directory / "index").unlink()
    assert Ledger.open(ledger.directory).versions() == [reader.version(number) for number in range(7)]


def test_a_reader_keeps_the_last_versions_and_the_parents_of_all(ledger, random_delta, monkeypatch):
    """A replica asks for the newest ones: a million edits need not be in its memory."""
    ledger = fill(ledger, random_delta, 9)
    reader = Ledger.open(ledger.directory, max_kept=3)
    assert reader.chain(9) == list(range(1, 10)) and reader.versions() == ledger.versions()
    assert set(reader._versions) == {0, 1, 2}, "those that were read last"
    assert reader.version(1) == ledger.version(1) and list(reader._versions)[-1] == 1
    monkeypatch.setattr(reader, "version", lambda number: pytest.fail("a version is read again for its parent"))
    assert reader.chain(9) == list(range(1, 10))


def test_the_index_takes_no_memory_for_its_edits(ledger, random_delta):
    text = "x" * 100_000
    for number in range(5):
        edits = [Edit(f"{number} {text}", "t", id=str(number))]
        ledger.append(number, random_delta(number), EditorState(), edits, {}, ("RLEdit", ""))
    tracemalloc.start()
    reader = Ledger.open(ledger.directory, max_kept=2)
    assert reader.chain(5) == [1, 2, 3, 4, 5]
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 400_000, "of five versions of 100 kB two are held"
