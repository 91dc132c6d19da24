"""Comparison of generated answers: SQuAD's normalisation of the first sentence."""

from __future__ import annotations

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_END = re.compile(r"\n|\.(?=\s|$)")  # a period inside a number does not end a sentence
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_sentence(text: str, like: str = "") -> str:
    """Cut `text` at its first period or line break.

    `like` is the target answer. If it contains such ends itself ("St. Louis"), as many are allowed in `text`.
    """
    allowed = sum(bool(part.strip()) for part in _END.split(like)) or 1
    text = text.strip()
    ends = [match.start() for match in _END.finditer(text)]
    return text[: ends[allowed - 1]] if len(ends) >= allowed else text


def normalise_answer(text: str, like: str = "") -> str:
    """Normalise the first sentence as SQuAD does: lower case, no punctuation, no articles, single spaces.

    A text of nothing but articles or punctuation ("A", "?") is only lower-cased, so that it never equals an empty answer.
    """
    lower = first_sentence(text, like).lower()
    return " ".join(_ARTICLES.sub(" ", lower.translate(_PUNCTUATION)).split()) or lower.strip()


def same_answer(one: str, other: str, like: str = "") -> bool:
    """Compare two texts after normalisation; `like` is the target, as in `first_sentence`."""
    return normalise_answer(one, like) == normalise_answer(other, like)
