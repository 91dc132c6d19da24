"""Comparison of generated answers: the first sentence, normalised as SQuAD does and, beyond English, by Unicode's classes.

`same_answer` compares a whole answer, `says` looks for a text inside one. Signs that make a name or a number stay: `C++` is
not `C`, `-5` not `5`, `3.5` not `35`, `$5` not `5`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from errata.text.dialogue import Dialogue, Prompt
from errata.text.sentences import first_sentence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FIRST_ARTICLE = re.compile(r"^\W*(?:(?:le|la|les|der|die|das|el|los|las|il|lo|gli|de|het)\s+|l['’])(?=\w)", re.IGNORECASE)
_END_SIGNS = ".!?。।॥؟۔"
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9])(\*{1,3}|__|`+)(?=\S)(.+?)(?<=\S)\1(?![A-Za-z0-9])")  # Markdown's
_BETWEEN_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Decimal signs, times, fractions, scores and dates, the sign before a number, and the line inside a name of code.
_INSIDE = re.compile(r"(?<=\d)[.,:/-](?=\d)|(?<![\w])-(?=\d)|(?<=\w)_(?=\w)")
_SAME = str.maketrans({"−": "-", "\ufeff": None, "\u200b": None, "\u2060": None})
_TYPED = str.maketrans({"’": "'", "‘": "'", "‐": "-", "‑": "-", "\u00ad": None})  # Signs as a keyboard writes them.
_IN_A_SENTENCE = re.compile(r"\s+[a-z]|'[a-z]")  # The pronoun and the article are followed by words.
_RANGE = re.compile(r"(?<=\d)[–‐‑](?=\d)")
# Names with another one in them, which is not meant: who says "South America" does not say "America".
_LONGER_NAMES = """south america|north america|latin america|central america|south africa|north korea|south korea|
    south sudan|equatorial guinea|new guinea|guinea-bissau|guinea bissau|new mexico|mexico city|panama city|guatemala city|
    kuwait city|new york|new jersey|new england|new zealand|new delhi|new caledonia|new hampshire|west virginia|north carolina|
    south carolina|north dakota|south dakota|northern ireland|north macedonia|american samoa|western sahara|
    dominican republic|south china sea|indian ocean|el salvador""".split("|")
_OTHER_NAMES = tuple(" ".join(name.split()) for name in _LONGER_NAMES)
_KEPT_ASCII = "#%&*/@\\"  # Of ASCII's punctuation these belong to names and numbers: C#, 50%, AT&T, A*, 1/2.


class Question(NamedTuple):
    """A prompt and its answer; `targets` are the texts that make an answer right, or none but `answer`."""

    prompt: Prompt
    answer: str
    targets: tuple[str, ...] = ()

    def is_answered_by(self, text: str) -> bool:
        """Say if a text is right: its first sentence is one of the texts or, in chat, contains one of them."""
        wanted = (self.answer, *self.targets)
        if any(same_answer(text, one, one) for one in wanted):
            return True
        is_in_chat = isinstance(self.prompt, Dialogue)
        return is_in_chat and any(says(first_sentence(text, one), one) for one in self.targets or wanted)


def normalise_answer(text: str, like: str = "") -> str:
    """Normalise the first sentence: composed form, lower case, no punctuation, no articles, single spaces.

    A text of nothing but articles or punctuation ("A", "?") is only lower-cased, so that it never equals an empty answer.
    """
    lower = unicodedata.normalize("NFC", first_sentence(text, like)).lower().translate(_SAME)
    plain = _without_punctuation(_BETWEEN_THOUSANDS.sub("", _EMPHASIS.sub(r"\2", _RANGE.sub("-", lower))))
    return " ".join(_ARTICLES.sub(" ", plain).split()) or lower.strip()


def same_answer(one: str, other: str, like: str = "") -> bool:
    """Compare two texts after normalisation; `like` is the target, as in `first_sentence`.

    An article of another language counts only where one of the two has none: `la France` is `France`, `La Paz` not `Le Paz`.
    """
    first, second = normalise_answer(one, like), normalise_answer(other, like)
    return first == second or _without_article(one, like) == second or first == _without_article(other, like)


def says(text: str, wanted: str) -> bool:
    """Say if `text` contains `wanted` as words, in any surroundings: how a chat model's answer is read.

    Case and accents do not count, nor does a sign that ends the wanted text. A wanted text of at most three characters with a
    capital keeps its case, because it is a symbol: `In` is not "in", and `I` is not the pronoun, which other words follow. A
    number is not a part of a longer one, and neither is a name: `America` is not said by "South America".
    """
    is_symbol = len(wanted.strip()) <= 3 and any(map(str.isupper, wanted))
    wanted, text = plain_letters(wanted, is_symbol), plain_letters(text, is_symbol)
    wanted = wanted.rstrip(_END_SIGNS) or wanted
    begins = [match.start() for match in re.finditer(f"(?={re.escape(wanted)})", text)] if wanted else []
    others = [] if is_symbol else _longer_names(text, wanted)
    begins = [begin for begin in begins if not any(first <= begin < last for first, last in others)]
    return any(_is_whole(text[:begin], wanted, text[begin + len(wanted) :]) for begin in begins)


def _is_whole(before: str, wanted: str, after: str) -> bool:
    """Say if a text is no part of a longer word, name or number between the texts before and after it."""
    first, last, following = wanted[0], wanted[-1], after[:1]
    if wanted in ("I", "A") and _IN_A_SENTENCE.match(after):
        return False
    if first.isdigit() and re.search(r"-$|\d[.,]$", before):
        return False
    if last.isdigit() and re.match(r"[.,]\d", after):
        return False
    if last.isalpha() and following in ("+", "#"):
        return False
    if following and unicodedata.category(following)[0] == "M":  # A mark changes the last letter.
        return False
    return not ((_is_apart(first) and _is_apart(before[-1:])) or (_is_apart(last) and _is_apart(following)))


def _longer_names(text: str, wanted: str) -> list[tuple[int, int]]:
    """Return where `text` has a longer name with `wanted` in it."""
    names = [name for name in _OTHER_NAMES if wanted in name and name not in wanted]
    return [match.span() for name in names for match in re.finditer(rf"\b{re.escape(name)}\b", text)]


def _is_apart(c: str) -> bool:
    """Say if words with this letter or digit are set apart: scripts without capitals may write without blanks."""
    return c == "_" or (c.isalnum() and unicodedata.category(c) not in ("Lo", "Lm"))


def plain_letters(text: str, keep_case: bool = False) -> str:
    """Take away accents, Markdown's emphasis, commas between thousands, white space and, unless kept, case."""
    text = unicodedata.normalize("NFKC", text).translate(_SAME).translate(_TYPED)
    text = _BETWEEN_THOUSANDS.sub("", _EMPHASIS.sub(r"\2", text))
    letters: list[str] = []
    for c in unicodedata.normalize("NFD", text):  # Only accents: marks of other scripts make other words.
        if not (unicodedata.combining(c) and letters and letters[-1].lower() != letters[-1].upper()):
            letters.append(c)
    bare = unicodedata.normalize("NFC", "".join(letters))
    return " ".join((bare if keep_case else bare.casefold()).split())


def _without_article(text: str, like: str) -> str:
    return normalise_answer(_FIRST_ARTICLE.sub("", first_sentence(text, like)), like)


def _without_punctuation(text: str) -> str:
    kept = {match.start() for match in _INSIDE.finditer(text)}
    return "".join(c for i, c in enumerate(text) if i in kept or not _is_punctuation(c))


def _is_punctuation(c: str) -> bool:
    if c.isascii():
        return c in "!\"'(),-.:;?[]_`{|}~" or (not c.isalnum() and not c.isspace() and c not in _KEPT_ASCII + "$+<=>^")
    return unicodedata.category(c)[0] == "P"
