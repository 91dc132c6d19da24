"""The blank between a prompt and its answer, or none: as the language and the prompt want it.

The rule looks at the end of the prompt and at the beginning of the answer. A blank follows words of languages that write blanks
between words. None follows white space, an open quotation mark or bracket, a sign that is part of the next word (`$`, `get_`,
`ZX-`, `l'`), or letters of languages without blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan), and none comes
before punctuation that closes a word. In a dialogue the answer is a message of its own and has no blank at all.
"""

from __future__ import annotations

import re
import unicodedata

# First and last code points of the scripts without blanks between words, with their punctuation and full-width forms.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # Han radicals, CJK punctuation, kana, Bopomofo
    (0x31A0, 0x9FFF),  # kana extensions, Han
    (0xA9E0, 0xA9FF),  # Burmese
    (0xAA60, 0xAA7F),  # Burmese
    (0xF900, 0xFAFF),  # Han
    (0xFE30, 0xFE4F),  # CJK forms
    (0xFF00, 0xFFEF),  # full-width and half-width forms
    (0x20000, 0x3FFFF),  # Han
)
_OPENING = "([{<“‘«‹„‚¿¡"
_PREFIXES = "$€£¥₹₽₩#@_\\^~+"
_GLUE = "-/=–—&*"  # Part of the next word if no blank stands before it.
_PAIRED = '"`'  # Opening and closing sign are the same.
_APOSTROPHES = "'’"
_ELIDED = {"jusqu", "lorsqu", "puisqu", "quelqu", "all", "dall", "dell", "nell", "sull", "dagl", "quell", "bell", "com"}
_CLOSING = ",;!?)]}»”’%"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'ll", "'d", "'m", "n't")


def separator(prompt: str, answer: str) -> str:
    """Return what stands between a completion's prompt and its answer: a blank, or nothing."""
    if not prompt or not answer or prompt[-1].isspace():
        return ""
    if _is_open(prompt) or _closes(answer) or _is_unspaced_here(prompt, answer):
        return ""
    if prompt[-1] == "." and prompt[-2:-1].isdigit() and answer[0].isdigit():
        return ""
    return " "


def is_unspaced(character: str) -> bool:
    """Say if a character belongs to a script that writes no blanks between words."""
    code = ord(character)
    return any(first <= code <= last for first, last in _UNSPACED)


def _is_open(prompt: str) -> bool:
    """Say if the prompt ends inside a word or a quotation that the answer continues."""
    last, before = prompt[-1], prompt[-2:-1]
    if last in _OPENING or last in _PREFIXES:
        return True
    if last in _PAIRED or prompt.endswith("**"):
        mark = last if last in _PAIRED else "**"
        return prompt.count(mark) % 2 == 1
    if last in _APOSTROPHES:
        return not before.isalpha() or _is_elided(prompt[:-1])
    return last in _GLUE and bool(before) and not before.isspace()


def _is_elided(prompt: str) -> bool:
    """Say if an apostrophe after `prompt` stands for a vowel: `l'`, `d'`, `qu'`, `dell'`, `O'`."""
    word = re.split(r"[^\w]", prompt.lower())[-1]
    return len(word) <= 2 or word in _ELIDED


def _closes(answer: str) -> bool:
    """Say if the answer begins with punctuation that closes the word before it."""
    if answer[0] in _CLOSING or answer.startswith(_CONTRACTIONS):
        return True
    return answer[0] == "." and not answer[1:2].isalnum()


def _is_unspaced_here(prompt: str, answer: str) -> bool:
    letters = [c for c in prompt if unicodedata.category(c)[0] in "LM"]
    if not letters:
        return is_unspaced(prompt[-1])
    if not is_unspaced(letters[-1]):
        return False
    return is_unspaced(answer[0]) or 2 * sum(map(is_unspaced, letters)) > len(letters)
