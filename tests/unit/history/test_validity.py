"""Corrections of one fact over time: which one ends another, and which contradict each other."""

from __future__ import annotations

from datetime import date

import pytest

from errata.edit import Edit
from errata.history.validity import Correction, TimeHeld, contradicts, held
from errata.text.dates import Period

POSTED = date(2026, 3, 1)


def correction(target: str, valid_from: str | None = None, valid_to: str | None = None, posted: date = POSTED) -> Correction:
    return Correction(Edit("Who leads Kurk?", target, valid_from=valid_from, valid_to=valid_to), posted, target)


@pytest.mark.parametrize(
    ("live", "new", "is_reported"),
    [
        (correction("Ann"), correction("Bob"), False),  # Simply later.
        (correction("Ann", "2020-01-01"), correction("Bob"), False),
        (correction("Ann", "2026-03-01"), correction("Bob"), False),  # On the day, and later on it.
        (correction("Ann", "2030-01-01"), correction("Bob"), True),  # What holds only later would be answered otherwise.
        (correction("Ann"), correction("Bob", "2019-01-01"), False),
        (correction("Ann", "2020-01-01"), correction("Bob", "2021-01-01"), False),
        (correction("Ann", "2020-01-01"), correction("Bob", "2020-01-01"), True),
        (
            correction("Ann", "2020-01-01"),
            correction("Bob", "2015-01-01", "2020-01-01"),
            True,
        ),  # Past, in the place of what holds.
        (correction("Ann", "2020-01-01"), correction("Ann", "2020-01-01"), False),
    ],
)
def test_a_correction_of_the_same_question_contradicts_unless_it_begins_later(
    live: Correction, new: Correction, is_reported: bool
) -> None:
    assert contradicts(new, live.edit, is_same_question=True) == is_reported


@pytest.mark.parametrize(
    ("live", "new", "is_reported"),
    [
        (correction("Ann"), correction("Bob"), True),  # Both stay.
        (correction("Ann", "2015-01-01", "2020-01-01"), correction("Bob", "2020-01-01"), False),
        (correction("Ann", "2015-01-01", "2020-01-02"), correction("Bob", "2020-01-01"), True),
        (correction("Ann"), correction("ann", "2020-01-01"), True),
        (correction("Ann"), correction(" Ann "), False),
    ],
)
def test_a_correction_in_other_words_contradicts_where_the_times_overlap(
    live: Correction, new: Correction, is_reported: bool
) -> None:
    assert contradicts(new, live.edit, is_same_question=False) == is_reported


def test_an_alias_of_the_target_is_no_contradiction() -> None:
    one = Edit("Who leads Kurk?", "Ann Lee", aliases=("Ann",))
    assert not contradicts(correction("Ann"), one, is_same_question=False)


def test_a_later_correction_ends_the_earlier_one() -> None:
    ann, bob, cem = correction("Ann"), correction("Bob", "2020-05-01"), correction("Cem", posted=date(2026, 4, 2))
    assert held(ann.edit, [bob, cem]) == TimeHeld(Period(None, date(2020, 5, 1)), "Bob")
    assert held(bob.edit, [cem]) == TimeHeld(Period(date(2020, 5, 1), date(2026, 4, 2)), "Cem")
    assert held(cem.edit, []) == TimeHeld(Period())


def test_a_correction_holds_no_longer_than_it_says() -> None:
    ann, bob = correction("Ann", "2010-01-01", "2015-01-01"), correction("Bob", "2020-01-01")
    assert held(ann.edit, [bob]) == TimeHeld(Period(date(2010, 1, 1), date(2015, 1, 1)))


def test_what_says_the_same_or_begins_no_later_ends_nothing() -> None:
    ann, again, past = correction("Ann", "2020-01-01"), correction("Ann", "2021-01-01"), correction("Bob", "2019-01-01")
    assert held(ann.edit, [again, past]) == TimeHeld(Period(date(2020, 1, 1)))
