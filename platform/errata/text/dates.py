"""Days and periods: the time in which a fact holds, and the time that a question asks about, in English.

A period has its first day and not its last: it ends before the day `end`. Without a bound it is open on that side.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import NamedTuple

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<{}>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEAR = r"[12]\d{3}"
# What names a time, and is no part of a name such as "the 2012 Olympics": a day, a month or a year after one of these words.
_TIME = re.compile(
    r"\b(?:back )?(?:in|on|during|as of)(?: the year| early| mid| late)? (?:"
    r"(?P<iso>\d{4}-\d{2}-\d{2})"
    rf"|(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH.format('month_after')},? (?P<year_after>{_YEAR})"
    rf"|(?:{_MONTH.format('month')} (?:(?P<day_after>\d{{1,2}})(?:st|nd|rd|th)?,? )?)?(?P<year>{_YEAR})"
    r")\b(?![-/–]\d)",
    re.IGNORECASE,
)


class Period(NamedTuple):
    """A time from the day `begin` until the day before `end`; None leaves it open."""

    begin: date | None = None
    end: date | None = None

    @property
    def is_empty(self) -> bool:
        return self.begin is not None and self.end is not None and self.end <= self.begin

    @property
    def is_open(self) -> bool:
        """Say if it is all time: nothing is known of it."""
        return self.begin is None and self.end is None

    def num_shared_days(self, other: Period) -> int:
        """Count the days of both periods."""
        begin = max(self.begin or date.min, other.begin or date.min)
        end = min(self.end or date.max, other.end or date.max)
        return max(0, (end - begin).days)


class AskedTime(NamedTuple):
    """The time that a question asks about, and the question without it."""

    period: Period
    question: str


def date_fault(text: str) -> str | None:
    """Say why a text is no ISO date; None if it is one."""
    why = "is no day of the calendar: give it as YYYY-MM-DD"
    if not _DAY.fullmatch(text):
        return why
    try:
        date.fromisoformat(text)
    except ValueError:
        return why
    return None


def period_of(begin: str | None, end: str | None) -> Period:
    """Return the period between two ISO dates. Raises `ValueError` for other texts."""
    return Period(*(date.fromisoformat(day) if day else None for day in (begin, end)))


def asked_time(question: str) -> AskedTime | None:
    """Return the time that a question asks about; None if it names none, or several."""
    found = list(_TIME.finditer(question))
    period = _period(found[0]) if len(found) == 1 else None
    if period is None:
        return None
    begin, end = found[0].span()
    rest = f"{question[:begin].rstrip(' ,')} {question[end:]}"
    return AskedTime(period, re.sub(r" (?=[?.!,])", "", " ".join(rest.split())).lstrip(" ,"))


def _period(named: re.Match[str]) -> Period | None:
    """Return the day, the month or the year that is named; None if the calendar has no such day."""
    try:
        if named["iso"]:
            begin = date.fromisoformat(named["iso"])
            return Period(begin, begin + timedelta(1))
        month, day = named["month_after"] or named["month"], named["day"] or named["day_after"]
        year = int(named["year_after"] or named["year"])
        if month is None:
            return Period(date(year, 1, 1), date(year + 1, 1, 1))
        number = 1 + _MONTHS.index(month[:3].lower())
        if day is None:
            return Period(date(year, number, 1), date(year + number // 12, number % 12 + 1, 1))
        begin = date(year, number, int(day))
        return Period(begin, begin + timedelta(1))
    except (ValueError, OverflowError):
        return None
