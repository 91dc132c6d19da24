"""The first sentence of a text: where a sentence ends, and where a full stop only shortens a word.

`Mr. Smith`, `St. Louis`, `J. K. Rowling` and `the U.S. state` go on; `the U.S. It is` does not: after initials, a sentence
begins with one of the words that begin most of them.
"""

from __future__ import annotations

import re
from itertools import pairwise

# A period inside a number or a name does not end a sentence. Scripts without blanks end one by the sign alone.
_END = re.compile(r"\n|[.!?…](?=[\s\"'”’»)\]]|$)|[。！？｡।॥؟۔]")
_SHORTENED = frozenset(
    """mr mrs ms mx dr prof st ste mt ft rev hon gen col capt lt sgt cpl maj adm gov sen rep pres sr jr messrs mme mlle
    nr vs ca approx e.g i.e cf fig vol ed eds dept univ esp incl z.b bzw geb bros""".split()
)
_LAST_WORD = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*$")
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")
_NEXT_WORD = re.compile(r"[ \t]+([^\W\d_]+)")
_BEGINS = frozenset(
    """the it its this that these those he she they we you his her their in on at as a an and but or so if when while there here
    however for from by with to both some many most one also today""".split()
)


def first_sentence(text: str, like: str = "") -> str:
    """Cut `text` at the end of its first sentence or line.

    `like` is the target answer. If it contains such ends itself ("Yes. No."), as many are allowed in `text`. Its own full stop
    ends the sentence.
    """
    allowed = sum(bool(part.strip()) for part in _parts(like)) or 1
    text = text.strip()
    # Signs before the first letter or digit end nothing.
    ends = [end for end in _ends(text, like) if any(map(str.isalnum, text[:end]))]
    return text[: ends[allowed - 1]] if len(ends) >= allowed else text


def _ends(text: str, like: str = "") -> list[int]:
    ends, own = [match.start() for match in _END.finditer(text)], like.strip().casefold()
    return [end for end in ends if not _is_shortened(text, end) or (own and text[: end + 1].casefold().endswith(own))]


def _parts(text: str) -> list[str]:
    places = [-1, *_ends(text), len(text)]
    return [text[begin + 1 : end] for begin, end in pairwise(places)]


def _is_shortened(text: str, place: int) -> bool:
    """Say if the sign at `place` is the full stop of a shortened word or of initials, after which the sentence goes on."""
    following = _NEXT_WORD.match(text, place + 1)
    before = _LAST_WORD.search(text[:place])
    if text[place] != "." or following is None or before is None:
        return False
    word, rest, is_initial = before[0], text[: before.start()].split(), text[following.end() : following.end() + 1] == "."
    if following[1].lower() in _BEGINS and not (is_initial and len(following[1]) == 1):
        return False
    if word.lower() in _SHORTENED and word != word.upper():
        return True
    if not (_INITIALS.fullmatch(word) and word.isupper()):
        return False
    # One letter may be a name's initial, or an answer ("The symbol is W. Tungsten is a metal.").
    return len(word) > 1 or not rest or rest[-1][0].isupper() or (is_initial and len(following[1]) == 1)
