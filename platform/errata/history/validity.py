"""Corrections of one fact over time: which one ends another, and which contradict each other.

A correction begins on its day `valid_from` or, without one, when it is posted. Of two corrections of one question the later one
takes the place of the earlier. It ends the earlier one if it begins later than that; otherwise the two contradict each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import NamedTuple

from errata.edit import Edit
from errata.text.dates import Period
from errata.text.rules import same_text


class Correction(NamedTuple):
    """A correction, the day on which it was posted, and its id."""

    edit: Edit
    posted: date
    id: str

    @property
    def begin(self) -> date:
        return self.edit.period.begin or self.posted


class TimeHeld(NamedTuple):
    """The time in which a correction held, and the id of the one that ended it."""

    period: Period
    ended_by: str | None = None


def say_the_same(one: Edit, other: Edit) -> bool:
    """Say if two corrections of one question agree: a target or an alias of the one is that of the other."""
    return not {same_text(text) for text in one.targets}.isdisjoint(same_text(text) for text in other.targets)


def ends(later: Correction, earlier: Edit) -> bool:
    """Say if a correction that was posted later ends an earlier one of the same question: it begins later than that.

    Without a day it begins at a time of the day on which it was posted.
    """
    begin, first = earlier.period.begin, later.edit.period.begin
    is_later = begin is None or (later.posted >= begin if first is None else first > begin)
    return is_later and not say_the_same(later.edit, earlier)


def contradicts(new: Correction, live: Edit, is_same_question: bool) -> bool:
    """Say if a new correction contradicts a live one that corrects the same.

    If it is asked with the same question, it takes the place of the live one, and contradicts it unless it begins later. With
    another question both stay, and contradict each other where their times overlap.
    """
    if say_the_same(new.edit, live):
        return False
    if is_same_question:
        return not ends(new, live)
    return new.edit.period.num_shared_days(live.period) > 0


def held(one: Edit, later: Iterable[Correction]) -> TimeHeld:
    """Return when a correction held; `later` are the live ones of the same question that were posted after it, in order."""
    begin, end = one.period
    follower = next((each for each in later if ends(each, one)), None)
    if follower is None or (end is not None and end <= follower.begin):
        return TimeHeld(Period(begin, end))
    return TimeHeld(Period(begin, follower.begin), follower.id)
