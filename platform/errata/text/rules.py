"""Rules of text: what may be in a prompt, a subject and a target, and which prompts are the same.

A prompt is kept as it was written, since the served model reads it so. A target and a subject lose white space and byte order
marks at their ends and take Unicode's composed form (NFC), the form that models write. Nothing else is changed: what a model
cannot read or write whole is refused, and so is what is invisible and needed by no language. Two prompts are the same if they
differ in white space, zero-width spaces and Unicode form alone; so are two targets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable

from errata.text.dialogue import Prompt
from errata.text.joining import is_unspaced

ZERO_WIDTH_SPACE = "\u200b"
_EDGES = f"\ufeff{ZERO_WIDTH_SPACE}\u2060"  # With byte order mark and word joiner: invisible, often left by copying.
# Embeddings, overrides and isolates (UAX 9): the marks LRM, RLM and ALM are enough to show a line of Hebrew or Arabic rightly.
TURNING = "\u202a-\u202e\u2066-\u2069"
# Soft hyphen, word joiner, invisible operators, deprecated controls, byte order mark, annotations, tags. The joiners ZWJ and
# ZWNJ, variation selectors and the signs of Arabic, Mongolian and other scripts are not among them: they change what is read.
INVISIBLE = "\u00ad\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_TURNING, _INVISIBLE = re.compile(f"[{TURNING}]"), re.compile(f"[{INVISIBLE}]")
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")  # Of England, Scotland, Wales.


def cleaned(text: str) -> str:
    """Return a target or a subject in the form in which it is learnt and compared."""
    while (kept := text.strip().strip(_EDGES)) != text:
        text = kept
    return unicodedata.normalize("NFC", text)


def is_blank(text: str) -> bool:
    """Say if a text has no visible character."""
    return not any(unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in text)


def text_fault(text: str) -> str | None:
    """Say which character of a text is refused: no model reads or writes it whole, or it is invisible; None without one."""
    if text.isprintable() and "\ufffd" not in text:
        return None
    shown = _FLAG.sub(lambda flag: "\U0001f3f4" * len(flag[0]), text)  # The tags of a flag are seen.
    for place, c in enumerate(shown):
        if (fault := _fault_of(c)) is not None:
            return f"has {fault[0]} U+{ord(c):04X} at character {place}{fault[1]}"
        if c == ZERO_WIDTH_SPACE and not _is_among_unspaced(shown, place):
            why = "which only languages without blanks write (Thai, Khmer, …), between their letters; take it out"
            return f"has the zero-width space U+200B at character {place}, {why}"
    return None


def _fault_of(c: str) -> tuple[str, str] | None:
    """Return what a character is called and why it is refused, for any place in a text."""
    category = unicodedata.category(c)
    if category == "Cs":
        return "a lone surrogate", ", which is no text; send valid UTF-8"
    if category == "Cc" and c not in "\t\n\r":
        return "the control character", "; take it out"
    if c == "\ufffd":
        return "the replacement character", ", the sign of text that was decoded wrongly; send the original text"
    if ord(c) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(c) <= 0xFDEF:
        return "the code point", ", which is no character; take it out"
    if _TURNING.match(c):
        return "the control", ", which shows the text in another order than it is learnt; take it out"
    if _INVISIBLE.match(c):
        return "the invisible character", "; take it out"
    return None


def _is_among_unspaced(text: str, place: int) -> bool:
    """Say if a letter of a script without blanks is before or after a run of zero-width spaces."""
    before, after = text[:place].rstrip(ZERO_WIDTH_SPACE)[-1:], text[place:].lstrip(ZERO_WIDTH_SPACE)[:1]
    return any(map(is_unspaced, before + after))


def subject_span(prompt: str, subject: str) -> tuple[int, int] | None:
    """Find the first occurrence of a subject in a prompt, in any Unicode form; None if there is none."""
    for form in (subject, *(unicodedata.normalize(name, subject) for name in ("NFC", "NFD"))):
        if form and (at := prompt.find(form)) >= 0:
            return at, at + len(form)
    return None


def same_text(text: str) -> str:
    """Return what two texts that are the same prompt, or the same target, have in common."""
    return " ".join(unicodedata.normalize("NFC", text).replace(ZERO_WIDTH_SPACE, "").split())


def prompt_key(prompt: Prompt) -> Hashable:
    """Return a key that two prompts share if they are the same."""
    if isinstance(prompt, str):
        return same_text(prompt)
    return tuple((message.role, same_text(message.content)) for message in prompt.messages)
