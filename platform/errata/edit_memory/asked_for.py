"""Kinds of questions, by what they ask for: a person, a time, a place, a number, or a thing that is named ("which country").

Two questions about one subject may have nearly the same words and ask for different things: "Where was she born?" and "When was
she born?". A sentence encoder puts these close together, so their words distinguish them, which are English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

PERSON, TIME, PLACE, NUMBER = "a person", "a time", "a place", "a number"
_KIND_NAMES = frozenset((PERSON, TIME, PLACE, NUMBER))
# Nouns that name a kind, and nouns of one meaning. Others stand for themselves.
_KINDS = {
    **dict.fromkeys("time year date day month century decade birthday".split(), TIME),
    **dict.fromkeys("place location".split(), PLACE),
    **dict.fromkeys("number amount population".split(), NUMBER),
    **dict.fromkeys("person man woman author writer player actor actress artist singer politician".split(), PERSON),
    "town": "city",
    "tongue": "language",
    "money": "currency",
    "firm": "company",
    **dict.fromkeys("profession job trade".split(), "occupation"),
}
_MEASURED = frozenset("many much old tall long far big large high heavy".split())
_PLACES = frozenset("city country continent village region".split())
# What is named after "what is the", where any noun may stand, counts only if it is one of these: "what is the capital" asks for
# the same as "which city is the capital".
_CERTAIN = _PLACES | _KINDS.keys() | {"language", "currency", "company", "occupation"}
_PERSON = re.compile(r"who(?:m|se)?")
_WORD = re.compile(r"\w+")
_BE = frozenset("is are was were s".split())
_VERBS = _BE | frozenset("be do does did has have had can could will would shall should may might stand lies lie re".split())
_PREPOSITIONS = frozenset("of in on at from to by with for that which where when through".split())
_ENDS = _VERBS | _PREPOSITIONS
_TELL = frozenset("name tell give state say".split())
MAX_NOUN = 5


@lru_cache(4096)
def asked_for(question: str) -> str | None:
    """Return what a question asks for, as a kind or as the word for a thing; None if its words do not say so."""
    words = _WORD.findall(question.casefold())
    tells = bool(words) and words[0] in _TELL  # A "which" after a preposition then begins no question: "the year in which".
    if tells and (kind := _certain(words[1:])) is not None:
        return kind
    for place, word in enumerate(words):
        rest = words[place + 1 :]
        if _PERSON.fullmatch(word):
            return PERSON
        if word in ("when", "where"):
            return TIME if word == "when" else PLACE
        if word == "how" and rest and rest[0] in _MEASURED:
            return NUMBER
        if word == "what" or (word == "which" and not (tells and words[place - 1] in _PREPOSITIONS)):
            noun = _noun(rest) or (rest[:1] if rest and rest[0] not in _ENDS else [])
            return _kind_of(noun[-1]) if noun else _certain(rest[1:]) if rest and rest[0] in _BE else None
    return None


def _noun(words: Sequence[str]) -> Sequence[str]:
    """Return the words up to a verb or a preposition; none if there is none near."""
    return words[: next((i for i, each in enumerate(words[:MAX_NOUN]) if each in _ENDS or _PERSON.fullmatch(each)), 0)]


def _certain(words: Sequence[str]) -> str | None:
    """Return the kind of the thing that these words begin with, if it is one that they may name in one way only."""
    noun = _noun([*words, "of"])  # It may end the question.
    if noun and noun[-1] == "name":
        return _certain(words[len(noun) + 1 :])
    kind = _singular(noun[-1]) if noun else ""
    return _KINDS.get(kind, kind) if kind in _CERTAIN else None


def _kind_of(word: str) -> str:
    return _KINDS.get(_singular(word), _singular(word))


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def ask_for_the_same(one: str, other: str) -> bool:
    """Say if two questions may ask for the same: nothing in their words speaks against it.

    A thing may be a person, a place or a number ("which author", "who"), but no time; a city is a place.
    """
    first, second = asked_for(one), asked_for(other)
    if first is None or second is None or first == second:
        return True
    kinds, things = {first, second} & _KIND_NAMES, {first, second} - _KIND_NAMES
    return len(kinds) == 1 and TIME not in kinds and (kinds == {PLACE} or not things & _PLACES)
