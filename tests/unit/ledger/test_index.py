"""The index: edits as they were appended, and what is damaged."""

from __future__ import annotations

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
    assert sorted(again.index.lines) == list(range(8))
    assert again.versions()[:7] == versions and recover(again).notes == ()
