"""Days, periods, and the times that questions ask about."""

from __future__ import annotations

from datetime import date

import pytest

from errata.text.dates import AskedTime, Period, asked_time, date_fault, period_of


@pytest.mark.parametrize("day", ["2019-02-28", "2020-02-29", "0001-01-01", "9999-12-31"])
def test_a_day_of_the_calendar_has_no_fault(day: str) -> None:
    assert date_fault(day) is None


@pytest.mark.parametrize(
    "day", ["2019", "2019-02", "20190228", "2019-02-30", "2019-13-01", "0000-01-01", "28.2.2019", "2019-W08-4", ""]
)
def test_other_texts_are_no_days(day: str) -> None:
    assert date_fault(day) == "is no day of the calendar: give it as YYYY-MM-DD"


def test_a_period_has_its_first_day_and_not_its_last() -> None:
    year = period_of("2019-01-01", "2020-01-01")
    assert year == Period(date(2019, 1, 1), date(2020, 1, 1)) and not year.is_empty and not year.is_open
    assert year.num_shared_days(period_of("2020-01-01", None)) == 0 and year.num_shared_days(period_of("2019-12-31", None)) == 1
    assert year.num_shared_days(Period()) == 365 and Period().is_open
    assert period_of("2019-01-01", "2019-01-01").is_empty and period_of("2019-01-02", "2019-01-01").is_empty


@pytest.mark.parametrize(
    ("question", "begin", "end", "rest"),
    [
        ("Who was the mayor of Kurk in 2019?", (2019, 1, 1), (2020, 1, 1), "Who was the mayor of Kurk?"),
        ("In 2019, who was the mayor of Kurk?", (2019, 1, 1), (2020, 1, 1), "who was the mayor of Kurk?"),
        ("Who led Kurk in May 2019?", (2019, 5, 1), (2019, 6, 1), "Who led Kurk?"),
        ("Who led Kurk in Dec. 2019?", (2019, 12, 1), (2020, 1, 1), "Who led Kurk?"),
        ("Who led Kurk on 2019-05-17?", (2019, 5, 17), (2019, 5, 18), "Who led Kurk?"),
        ("Who led Kurk on May 17, 2019?", (2019, 5, 17), (2019, 5, 18), "Who led Kurk?"),
        ("Who led Kurk on the 17th of May 2019?", None, None, ""),
        ("Who led Kurk on 17th of May 2019?", (2019, 5, 17), (2019, 5, 18), "Who led Kurk?"),
        ("Who led Kurk as of 31 December 2019 and lived there?", (2019, 12, 31), (2020, 1, 1), "Who led Kurk and lived there?"),
        ("Who led Kurk back in the year 1812?", (1812, 1, 1), (1813, 1, 1), "Who led Kurk?"),
    ],
)
def test_a_question_names_a_time(question: str, begin: tuple[int, ...] | None, end: tuple[int, ...], rest: str) -> None:
    found = asked_time(question)
    assert found == (None if begin is None else AskedTime(Period(date(*begin), date(*end)), rest))


@pytest.mark.parametrize(
    "question",
    [
        "Who is the mayor of Kurk?",
        "Who won the 2012 Olympics?",
        "Who led Kurk between 2012 and 2019?",
        "Who led Kurk before 2019?",
        "Who led Kurk in 2012 and in 2019?",
        "Who won the cup in 2019-20?",
        "Who led Kurk on 31 February 2019?",
        "How many people live in 19 houses?",
        "Who led Kurk on 9999-12-31?",
    ],
)
def test_a_question_names_no_time_or_several(question: str) -> None:
    assert asked_time(question) is None
