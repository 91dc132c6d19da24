"""Rules of text: what may be in a prompt, a subject and a target, and which prompts are the same.

A prompt is kept as it was written, since the served model reads it so. A target and a subject lose white space and byte order
marks at their ends and take Unicode's composed form (NFC), the form that models write. Nothing else is changed: what a model
cannot read or write whole is refused. Two prompts are the same if they differ in white space and Unicode form alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable

from errata.text.dialogue import Prompt

_EDGES = "\ufeff\u200b\u2060"  # Byte order mark, zero-width space and word joiner: invisible, often left by copying.
_WHITE = re.compile(r"\s+")


def cleaned(text: str) -> str:
    """Return a target or a subject in the form in which it is learnt and compared."""
    return unicodedata.normalize("NFC", text.strip().strip(_EDGES).strip())


def is_blank(text: str) -> bool:
    """Say if a text has no visible character."""
    return not any(unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in text)


def text_fault(text: str) -> str | None:
    """Say which character of a text no model reads or writes whole; None if there is none."""
    if text.isprintable() and "\ufffd" not in text:
        return None
    for place, c in enumerate(text):
        category = unicodedata.category(c)
        if category == "Cs":
            return f"has a lone surrogate (U+{ord(c):04X}) at character {place}, which is no text; send valid UTF-8"
        if category == "Cc" and c not in "\t\n\r":
            return f"has the control character U+{ord(c):04X} at character {place}; take it out"
        if c == "\ufffd":
            return f"has U+FFFD at character {place}, the sign of text that was decoded wrongly; send the original text"
        if ord(c) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(c) <= 0xFDEF:
            return f"has U+{ord(c):04X} at character {place}, which is no character; take it out"
    return None


def subject_span(prompt: str, subject: str) -> tuple[int, int] | None:
    """Find the first occurrence of a subject in a prompt, in any Unicode form; None if there is none."""
    for form in (subject, *(unicodedata.normalize(name, subject) for name in ("NFC", "NFD"))):
        if form and (at := prompt.find(form)) >= 0:
            return at, at + len(form)
    return None


def same_text(text: str) -> str:
    """Return what two texts that are the same prompt have in common."""
    return _WHITE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def prompt_key(prompt: Prompt) -> Hashable:
    """Return a key that two prompts share if they are the same."""
    if isinstance(prompt, str):
        return same_text(prompt)
    return tuple((message.role, same_text(message.content)) for message in prompt.messages)
