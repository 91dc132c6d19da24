"""Past records of a memory that compares questions: what a later record of the same fact replaces stays, with its end.

A past record answers questions about its time and no others, so that a memory without dates is as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from errata.edit_memory.bank import Bank, Record, past_fact


def with_past(records: Iterable[Record], bank: Bank | None) -> tuple[Record, ...]:
    """Return new records of a bank, each after the one that it replaces as a past record, if it begins on a later day."""
    made: list[Record] = []
    for record in records:
        before = None if bank is None else bank.records.get(record.fact)
        if before is not None and record.valid_from and before.text != record.text and before.valid_from < record.valid_from:
            end = min(before.valid_to or record.valid_from, record.valid_from)
            fact = past_fact(before.fact, before.valid_from, end)
            made.append(replace(before, fact=fact, valid_to=end))
        made.append(record)
    return tuple(made)
