"""Kinds of questions, by what they ask for: a person, a time, a place, a number, or a thing that is named ("which country").

Two questions about one subject may have nearly the same words and ask for different things: "Where was she born?" and "When was
she born?". A sentence encoder puts these close together, so their question words distinguish them, which are English.
"""

from __future__ import annotations

import re

PERSON, TIME, PLACE, NUMBER = "a person", "a time", "a place", "a number"
_KINDS = {
    **dict.fromkeys(("when", "year", "years", "date", "day", "month", "century", "decade"), TIME),
    "where": PLACE,
    **dict.fromkeys(("many", "much", "old", "tall", "long", "far", "big", "large", "high", "heavy"), NUMBER),
}
_KIND_NAMES = frozenset({PERSON, *_KINDS.values()})
_PERSON = re.compile(r"who(?:m|se)?")
_WORD = re.compile(r"\w+")
_VERBS = frozenset(
    "is are was were be do does did has have had can could will would shall should may might stand lies lie s re".split()
)


def asked_for(question: str) -> str | None:
    """Return what a question asks for, as a kind or as the word for a thing; None if its words do not say so."""
    words = _WORD.findall(question.casefold())
    for place, word in enumerate(words):
        rest = words[place + 1 :]
        if _PERSON.fullmatch(word):
            return PERSON
        if word in ("when", "where"):
            return _KINDS[word]
        if word == "how" and rest and _KINDS.get(rest[0]) == NUMBER:
            return NUMBER
        if word in ("which", "what"):
            named = rest[: next((i for i, each in enumerate(rest[:4]) if each in _VERBS), 1)]
            return _KINDS.get(named[-1], named[-1]) if named else None
    return None


def ask_for_the_same(one: str, other: str) -> bool:
    """Say if two questions may ask for the same: nothing in their words speaks against it.

    A thing may be a person, a place or a number ("which author", "who"), but no time.
    """
    first, second = asked_for(one), asked_for(other)
    if first is None or second is None or first == second:
        return True
    return len({first, second} & _KIND_NAMES) == 1 and TIME not in (first, second)
