"""The rows of banks that follow each other: the same as joined from all records, whatever else has followed the same bank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.edit_memory import row_buffer
from errata.edit_memory.bank import Bank, Record

CPU = torch.device("cpu")


def a_record(fact: str, num_rows: int = 2) -> Record:
    random = torch.Generator().manual_seed(sum(map(ord, fact)))
    rows = {"key": torch.rand(num_rows, 3, generator=random), "token": torch.randint(9, (num_rows,), generator=random)}
    return Record(fact, fact, rows | {"after": rows["token"] + 1, "threshold": torch.rand(num_rows, generator=random)})


def bank_of(*facts: str) -> Bank:
    return Bank("state", "inside").changed(map(a_record, facts), ())


def joined(bank: Bank) -> dict[str, Tensor]:
    return {name: torch.cat([record.rows[name] for record in bank]) for name in ("key", "token", "after", "threshold")}


def check(*banks: Bank) -> None:
    for bank in banks:
        for name, rows in joined(bank).items():
            assert torch.equal(bank.rows[name], rows) and bank.rows[name].is_contiguous()


def test_banks_that_follow_each_other_have_the_rows_of_their_records() -> None:
    banks = [bank_of("a")]
    for fact in "bcdefgh":
        check(banks[-1])
        banks.append(banks[-1].changed([a_record(fact, 1 + len(banks) % 3)], ()))
    check(*banks)


def test_two_banks_may_follow_the_same_one() -> None:
    first = bank_of("a").changed([a_record("b")], ())
    check(first)
    before = first.changed([a_record("c")], ())
    check(before)
    other = first.changed([a_record("d")], ())
    check(before, other, first, before.changed([a_record("e")], ()), other.changed([a_record("f")], ()))


@pytest.mark.parametrize(("records", "dropped"), [([a_record("a", 3)], ()), ([], ("a",)), ([a_record("z")], ("b",))])
def test_replaced_and_dropped_records_leave_no_rows(records: list[Record], dropped: tuple[str, ...]) -> None:
    bank = bank_of("a", "b", "c")
    check(bank)
    check(bank.changed(records, dropped), bank)


def test_few_banks_copy_the_rows_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = list[int]()
    room = row_buffer._with_room
    monkeypatch.setattr(row_buffer, "_with_room", lambda tensor, n: (copied.append(len(tensor)), room(tensor, n))[1])
    bank = bank_of("first")
    bank.on(CPU)
    for number in range(500):
        bank = bank.changed([a_record(str(number))], ())
    assert len(bank.rows["key"]) == 1002
    assert sum(copied) < 4 * 3 * 1002, "of four tensors, a few times the rows, not the 500 times of joining each bank again"
