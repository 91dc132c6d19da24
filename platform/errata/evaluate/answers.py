"""Compare answers."""

from __future__ import annotations

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_END = re.compile(r"\n|\.(?=\s|$)")  # a period inside a number ends no sentence
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_sentence(text: str, like: str = "") -> str:
    """Up to the first period or line's end. `like` is the answer wanted: "St. Louis" is allowed one more such end."""
    allowed = sum(bool(part.strip()) for part in _END.split(like)) or 1
    text = text.strip()
    ends = [match.start() for match in _END.finditer(text)]
    return text[: ends[allowed - 1]] if len(ends) >= allowed else text


def normalise_answer(text: str, like: str = "") -> str:
    """The first sentence, as SQuAD compares answers: lower case, without punctuation, articles and extra space.

    A text that is nothing but those ("A", "?") stays as it is, in lower case: saying nothing must not be equal to it.
    """
    lower = first_sentence(text, like).lower()
    return " ".join(_ARTICLES.sub(" ", lower.translate(_PUNCTUATION)).split()) or lower.strip()


def same_answer(one: str, other: str, like: str = "") -> bool:
    """Whether two texts give the same answer; `like` as `first_sentence` has it."""
    return normalise_answer(one, like) == normalise_answer(other, like)
