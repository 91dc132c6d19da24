"""The blank between a prompt and its answer, or none: as the language and the prompt want it.

The rule looks at the end of the prompt and at the beginning of the answer. A blank follows words of languages that write
blanks between words. None follows white space, an open quotation mark or bracket, a sign that is part of the next word
(`$`, `get_`, `ZX-`, `l'`), or letters of languages without blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan,
…), and none comes before punctuation that closes a word. In a dialogue the answer is a message of its own, and has only the
template's blank.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# First and last code points of the scripts without blanks between words, with their punctuation and full-width forms.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer signs
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x312F),  # Han radicals, CJK punctuation, kana, Bopomofo
    (0x31A0, 0x9FFF),  # kana extensions, Han
    (0xA980, 0xA9FF),  # Javanese, Burmese
    (0xAA60, 0xAADF),  # Burmese, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0xFE30, 0xFE4F),  # CJK forms
    (0xFF00, 0xFFEF),  # full-width and half-width forms
    (0x20000, 0x3FFFF),  # Han
)
_PREFIXES = "$€£¥₹₽₩#@_\\^~+<¿¡"
_GLUE = "-/=–—&*"  # Part of the next word if no blank precedes it.
_PAIRED = '"`'  # Opening and closing sign are the same.
_OPENED_BY = {"“": "„", "«": "»", "‹": "›", "‘": "‚"}  # Signs that open, or close what the other sign has opened.
_CLOSING_TOO = {"»": "«", "›": "‹", "”": "“„"}  # Signs that close what another has opened, and open if nothing is open.
_APOSTROPHES = "'’"
_ELIDED = {
    "jusqu",
    "lorsqu",
    "puisqu",
    "quelqu",
    "aujourd",
    "all",
    "dall",
    "dell",
    "nell",
    "sull",
    "dagl",
    "quell",
    "bell",
    "com",
}
_CLOSING = ",;!?)]}»”’%…،؛؟।॥"
_CONTRACTION = re.compile(r"(?:'(?:s|t|re|ve|ll|d|m)|n't)(?!\w)")


def separator(prompt: str, answer: str) -> str:
    """Return the text between a completion's prompt and its answer: a blank, or nothing."""
    if not prompt or not answer or prompt[-1].isspace():
        return ""
    if _is_open(prompt, answer) or _closes(answer) or _is_unspaced_here(prompt, answer):
        return ""
    if prompt[-1] == "." and prompt[-2:-1].isdigit() and answer[0].isdigit():
        return ""
    return " "


@lru_cache(8192)  # Every character of a question is looked at, and most are the same few.
def is_unspaced(character: str) -> bool:
    """Say if a character belongs to a script that writes no blanks between words."""
    code = ord(character)
    return any(first <= code <= last for first, last in _UNSPACED)


def _is_open(prompt: str, answer: str) -> bool:
    """Say if the prompt ends inside a word or a quotation that the answer continues."""
    last, before = prompt[-1], prompt[-2:-1]
    if last in _PAIRED or prompt.endswith("**"):
        mark = last if last in _PAIRED else "**"
        return prompt.count(mark) % 2 == 1
    if last in _OPENED_BY or last in _CLOSING_TOO:
        return _opens(last, prompt[:-1])
    if last in _APOSTROPHES:
        return not before or before.isspace() or before in "([{" or _is_elided(prompt[:-1])
    if last in _PREFIXES:
        return not _ends_a_name(prompt, answer)
    if last in _GLUE:
        return bool(before) and not before.isspace() and not _ends_a_name(prompt, answer)
    return unicodedata.category(last) in ("Ps", "Pi")


def _opens(sign: str, before: str) -> bool:
    """Say if a quotation mark after `before` begins a quotation: languages use the same signs in turned order."""
    if sign in _OPENED_BY:
        return before.count(_OPENED_BY[sign]) <= before.count(sign)
    if sum(map(before.count, _CLOSING_TOO[sign])) > before.count(sign):
        return False
    return (not before or not before[-1].isalnum()) and (sign != "”" or before.count(sign) % 2 == 0)


def _ends_a_name(prompt: str, answer: str) -> bool:
    """Say if the sign at the end belongs to the word before it, and another word follows: `C++ is`, `A* finds`, `5€ more`."""
    word = prompt.rstrip(prompt[-1])[-1:]
    if prompt[-1] in "+#*":
        return word.isalnum() and not answer[0].isdigit()
    return prompt[-1] in "$€£¥₹₽₩" and word.isdigit()


def _is_elided(prompt: str) -> bool:
    """Say if an apostrophe after `prompt` stands for a vowel: `l'`, `d'`, `qu'`, `dell'`, `O'`."""
    word = re.split(r"[^\w]", prompt.lower())[-1]
    return word.isalpha() and (len(word) <= 2 or word in _ELIDED)


def _closes(answer: str) -> bool:
    """Say if the answer begins with punctuation that closes the word before it."""
    if answer[0] in _CLOSING or _CONTRACTION.match(answer):
        return True
    return answer[0] == "." and not answer[1:2].isalnum()


def _is_unspaced_here(prompt: str, answer: str) -> bool:
    letters = [c for c in prompt if unicodedata.category(c)[0] in "LM"]
    if not letters:
        return is_unspaced(prompt[-1])
    if not is_unspaced(letters[-1]):
        return False
    return is_unspaced(answer[0]) or 2 * sum(map(is_unspaced, letters)) > len(letters)
