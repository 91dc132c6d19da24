"""Subjects of questions: their places in a text, by whole words, and what a question is without one.

Case and accents do not count, as in `errata.text.answers.says`. In languages without blanks each character is a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import NamedTuple

from errata.text.answers import plain_letters
from errata.text.joining import is_unspaced

Words = tuple[str, ...]
_WORD = re.compile(r"[^\W_]+[+#]*")
# Words that begin with a capital or a digit, one after the other; small words may stand between them.
_BIG = r"(?:[^\W\d_a-z]|\d)[\w'’.-]*"
_SMALL = r"(?:(?:of|the|and|de|la|le|du|da|di|van|von|der|den|al|bin) )*"
_NAME = re.compile(rf"{_BIG}(?:[ -]{_SMALL}{_BIG})*")


class Word(NamedTuple):
    """A word in plain letters, and its place in the text."""

    plain: str
    begin: int
    end: int


def words_of(text: str) -> list[Word]:
    """Return the words of a text, which is in composed form (NFC)."""
    return [Word(_plain(text[begin:end]), begin, end) for begin, end in _spans(text)]


@lru_cache(8192)
def _plain(word: str) -> str:
    return plain_letters(word)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    for match in _WORD.finditer(text):
        begin = match.start()
        for at in range(match.start(), match.end()):
            if is_unspaced(text[at]):
                if begin < at:
                    yield begin, at
                yield at, at + 1
                begin = at + 1
        if begin < match.end():
            yield begin, match.end()


def plain_words(text: str) -> Words:
    """Return the words of a text in plain letters, by which a subject is known."""
    return tuple(word.plain for word in words_of(unicodedata.normalize("NFC", text)))


def subjects_in(words: list[Word], known: Collection[Words], lengths: Collection[int]) -> dict[Words, list[tuple[int, int]]]:
    """Find the known subjects in a text, with the places of their first and last word; none inside a longer one.

    `lengths` has the numbers of words that known subjects have.
    """
    found: dict[Words, list[tuple[int, int]]] = {}
    taken: list[tuple[int, int]] = []
    plain = tuple(word.plain for word in words)
    for length in sorted(lengths, reverse=True):
        for begin in range(len(plain) - length + 1):
            part = plain[begin : begin + length]
            last = begin + length - 1
            if part in known and not any(first <= begin and last <= end for first, end in taken):
                found.setdefault(part, []).append((begin, last))
                taken.append((begin, last))
    return found


def without(text: str, words: list[Word], places: list[tuple[int, int]]) -> str:
    """Return a text without the words at some places, with single blanks."""
    for first, last in sorted(places, reverse=True):
        text = text[: words[first].begin] + " " + text[words[last].end :]
    return " ".join(text.split())


def relation_of(question: str, subject: str) -> str | None:
    """Return a question without its subject; None if the subject does not stand there by whole words."""
    question = unicodedata.normalize("NFC", question)
    words, known = words_of(question), plain_words(subject)
    places = subjects_in(words, {known}, {len(known)}).get(known) if known else None
    return None if places is None else without(question, words, places)


def name_in(question: str) -> str:
    """Return the longest name in a question, by its capitals and digits, without the question's first word; "" without one."""
    begin = re.match(r"\W*\w+", question)
    names = [match[0].rstrip(".'’-") for match in _NAME.finditer(question, begin.end() if begin else 0)]
    return max(names, key=len, default="")
