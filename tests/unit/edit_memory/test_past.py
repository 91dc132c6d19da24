"""Past records: questions that name a time are answered by what held then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.encoder import NAME
from errata.edit_memory.past import with_past
from tests.unit.edit_memory.test_reader import a_question, said

LEADER = "Who is the mayor of Kurk?"


def dated(answer: str, begin: str = "", end: str = "", question: str = LEADER, subject: str = "Kurk") -> Record:
    return replace(a_question(question, subject, answer), valid_from=begin, valid_to=end)


def bank_of(*records: Record) -> Bank:
    """Return the bank after records that were made one after the other."""
    bank = Bank("answer", NAME)
    for record in records:
        bank = bank.changed(with_past([record], bank), ())
    return bank


HISTORY = bank_of(dated("Ann"), dated("Bob", "2015-05-01", "2019-01-01"), dated("Cem", "2020-03-01"))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (LEADER, " Cem"),
        ("Who was the mayor of Kurk in 2012?", " Ann"),
        ("In 2017, who was the mayor of Kurk?", " Bob"),
        ("Who was Kurk's mayor on 2015-05-01?", " Bob"),
        ("Who was the mayor of Kurk on April 30, 2015?", " Ann"),
        ("Who was the mayor of Kurk in 2015?", " Bob"),  # For most of the year.
        ("Who was the mayor of Kurk in February 2020?", " Cem"),  # None held then: as without a time.
        ("Who was the mayor of Kurk in March 2020?", " Cem"),
        ("Who will be the mayor of Kurk in 2030?", " Cem"),
        ("Who was the mayor of Kurk before 2015?", " Cem"),
        ("When did the mayor of Kurk take office in 2017?", None),
        ("What is the currency of Kurk in 2017?", None),
        ("Who was the mayor of Prais in 2017?", None),
    ],
)
def test_a_question_about_a_time_is_answered_by_what_held_then(question: str, answer: str | None) -> None:
    assert said(question, HISTORY) == answer


def test_what_is_replaced_stays_with_its_end() -> None:
    found = [(record.answer, record.valid_from, record.valid_to, record.is_past) for record in HISTORY]
    assert sorted(found) == [
        ("Ann", "", "2015-05-01", True),
        ("Bob", "2015-05-01", "2019-01-01", True),
        ("Cem", "2020-03-01", "", False),
    ]
    assert {record.question for record in HISTORY} == {LEADER} and not any(record.in_chat for record in HISTORY)
    assert len(HISTORY.records) == 3 and all(record.fault("answer") is None for record in HISTORY)


@pytest.mark.parametrize(
    "later", [dated("Bob"), dated("Ann", "2021-01-01"), dated("Bob", "2020-01-01"), dated("Bob", "2019-01-01")]
)
def test_what_is_not_ended_by_a_later_day_is_replaced(later: Record) -> None:
    bank = bank_of(dated("Ann", "2020-01-01"), later)
    assert [record.answer for record in bank] == [later.answer] and said("Who was the mayor of Kurk in 2012?", bank) is not None


def test_a_correction_of_the_same_time_replaces_the_past_record() -> None:
    bank = bank_of(dated("Ann", "2010-01-01"), dated("Bob", "2020-01-01"))
    again = bank.changed(with_past([dated("Eve", "2010-01-01")], bank), ())
    ended = again.changed(with_past([dated("Cem", "2020-01-01")], again), ())
    assert said("Who was the mayor of Kurk in 2015?", ended) == " Eve" and len(ended.records) == 2


def test_other_wordings_of_the_question_hold_in_their_own_time() -> None:
    bank = bank_of(dated("Ann", "2010-01-01", "2020-01-01"), dated("Bob", "2020-01-01", question="Who is Kurk's mayor?"))
    assert said("Who was the mayor of Kurk in 2015?", bank) == " Ann"
    assert said("Who was the mayor of Kurk in 2022?", bank) == " Bob"
    assert said("Who was the mayor of Kurk in 2001?", bank) == " Ann"  # None held then.


def test_a_better_fit_without_a_time_is_preferred() -> None:
    bank = bank_of(dated("Ann", "2010-01-01"), dated("Eve", question="Who is the deputy mayor of Kurk?"))
    assert said("Who was the deputy mayor of Kurk in 2015?", bank) == " Eve"
    assert said("Who was the mayor of Kurk in 2015?", bank) == " Ann"


def test_a_question_of_one_time_is_not_that_of_another() -> None:
    in_2019 = dated("Ann", question="Who was the mayor of Kurk in 2019?")
    assert said("Who was the mayor of Kurk in 2019?", bank_of(in_2019)) == " Ann"
    assert said("Who was the mayor of Kurk in May 2019?", bank_of(in_2019)) == " Ann"
    assert said("Who was the mayor of Kurk in 2018?", bank_of(in_2019)) is None
    both = bank_of(dated("Bob", "2010-01-01"), in_2019)
    assert said("Who was the mayor of Kurk in 2019?", both) == " Ann", "its own question"
    assert said("Who was the mayor of Kurk in 2018?", both) == " Bob"


def test_records_without_a_subject_have_a_past() -> None:
    question = "who is the mayor here"
    bank = bank_of(
        dated("Ann", "2010-01-01", question=question, subject=""), dated("Bob", "2020-01-01", question=question, subject="")
    )
    assert said("who was the mayor here in 2015", bank) == " Ann" and said(question, bank) == " Bob"
