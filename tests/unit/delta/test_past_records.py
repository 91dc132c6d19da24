"""Past records in changes of a memory: they are saved, and go with the change that made them."""

from __future__ import annotations

from dataclasses import replace

import torch

from errata.delta.memory_delta import MemoryDelta, held_after, held_again
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.encoder import NAME, NUM_DIMENSIONS
from errata.edit_memory.past import with_past
from errata.text.rules import fact_of

ROWS = {"key": torch.zeros(1, NUM_DIMENSIONS), "threshold": torch.zeros(1)}


def leader(name: str, begin: str = "", end: str = "") -> Record:
    fact = fact_of("Who leads Kurk?")
    return Record(fact, f"Who leads Kurk? {name}", ROWS, "Kurk", f"id of {name}", name, begin, end)


def changes(*records: Record) -> list[MemoryDelta]:
    """Return the changes of records that were made one after the other."""
    found: list[MemoryDelta] = []
    for record in records:
        found.append(MemoryDelta("answer", NAME, with_past([record], held_after(found))))
    return found


def times(bank: Bank | None) -> list[tuple[str, str, str, bool]]:
    assert bank is not None
    return [(record.answer, record.valid_from, record.valid_to, record.is_past) for record in bank]


ANN, BOB, CEM = leader("Ann", "2010-01-01"), leader("Bob", "2015-01-01"), leader("Cem", "2020-01-01")


def test_past_records_are_saved_with_their_times() -> None:
    (_, change) = changes(ANN, BOB)
    read = MemoryDelta.from_tensors(change.to_tensors())
    assert [(r.fact, r.valid_from, r.valid_to, r.is_past) for r in read.records] == [
        (f"{ANN.fact}\n2010-01-01..2015-01-01", "2010-01-01", "2015-01-01", True),
        (BOB.fact, "2015-01-01", "", False),
    ]
    assert read.digest() == change.digest() and read.check() is None


def test_records_without_a_time_are_saved_as_in_earlier_releases() -> None:
    (change,) = changes(leader("Ann"))
    assert b"valid" not in change.to_tensors()["memory|about"].numpy().tobytes()
    assert [record.valid_from for record in MemoryDelta.from_tensors(change.to_tensors()).records] == [""]


def test_what_a_change_ended_is_as_if_it_had_not_been_when_it_is_taken_out() -> None:
    first, second, third = changes(ANN, BOB, CEM)
    whole = [
        ("Ann", "2010-01-01", "2015-01-01", True),
        ("Bob", "2015-01-01", "2020-01-01", True),
        ("Cem", "2020-01-01", "", False),
    ]
    assert sorted(times(held_again([first, second, third]))) == whole == sorted(times(held_after([first, second, third])))
    assert sorted(times(held_again([first, third]))) == [("Ann", "2010-01-01", "2020-01-01", True), whole[2]]
    assert sorted(times(held_again([second, third]))) == whole[1:]
    assert times(held_again([first])) == [("Ann", "2010-01-01", "", False)] and held_again([]) is None


def test_a_correction_that_is_made_again_has_no_past_of_its_own() -> None:
    assert times(held_after(changes(ANN, BOB, replace(BOB)))) == times(held_after(changes(ANN, BOB)))
