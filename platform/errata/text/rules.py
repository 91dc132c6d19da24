"""Rules of text: what may be in a prompt, a subject and a target, and which prompts are the same.

A prompt is kept as it was written, since the served model reads it so. A target and a subject lose white space and byte order
marks at their ends and take Unicode's composed form (NFC), the form that models write. Nothing else is changed: what a model
cannot read or write whole is refused, and so is what is invisible and needed by no language. Two prompts are the same if they
differ in white space, zero-width spaces and Unicode form alone; so are two targets.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Hashable
from urllib.parse import urlsplit

from errata.text.dialogue import Prompt
from errata.text.joining import is_unspaced

ZERO_WIDTH_SPACE = "\u200b"
# Byte order mark, word joiner and the marks LRM, RLM and ALM: invisible at an end, where copying often leaves them.
_EDGES = f"\ufeff{ZERO_WIDTH_SPACE}\u2060\u200e\u200f\u061c"
# Embeddings, overrides and isolates (UAX 9): the marks LRM, RLM and ALM are enough to show a line of Hebrew or Arabic rightly.
TURNING = "\u202a-\u202e\u2066-\u2069"
# Soft hyphen, grapheme joiner, fillers of Hangul, Khmer's inherent vowels, word joiner, invisible operators, deprecated
# controls, byte order mark, annotations, controls of shorthand and music, tags and the rest of their plane. The joiners ZWJ and
# ZWNJ, variation selectors and the signs of Arabic, Mongolian and other scripts are not among them: they change what is read.
INVISIBLE = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
# Controls except tab, line feed and carriage return, the replacement character, and code points that are no characters.
BROKEN = "\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\ufdd0-\ufdef\ufffd-\uffff" + "".join(
    f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000)
)
_REFUSED = re.compile(f"[{BROKEN}{TURNING}{INVISIBLE}{ZERO_WIDTH_SPACE}\ud800-\udfff]")
_TURNING, _VARIATION = re.compile(f"[{TURNING}]"), re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")  # Of England, Scotland, Wales.


def cleaned(text: str) -> str:
    """Return a target or a subject in the form in which it is learnt and compared."""
    while (kept := text.strip().strip(_EDGES)) != text:
        text = kept
    return unicodedata.normalize("NFC", text)


def is_blank(text: str) -> bool:
    """Say if a text has no visible character."""
    return not any(unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp") and not _VARIATION.match(c) for c in text)


def text_fault(text: str) -> str | None:
    """Say which character of a text is refused: no model reads or writes it whole, or it is invisible; None without one."""
    if _REFUSED.search(text) is None:
        return None
    takes_spaces = any(map(is_unspaced, text))
    for found in _REFUSED.finditer(_FLAG.sub(lambda flag: "\U0001f3f4" * len(flag[0]), text)):  # The tags of a flag are seen.
        if found[0] != ZERO_WIDTH_SPACE or not takes_spaces:
            kind, why = _fault_of(found[0])
            return f"has {kind} U+{ord(found[0]):04X} at character {found.start()}{why}"
    return None


def _fault_of(c: str) -> tuple[str, str]:
    """Return what a refused character is called, and why it is refused."""
    category = unicodedata.category(c)
    if category == "Cs":
        return "a lone surrogate", ", which is no text; send valid UTF-8"
    if category == "Cc":
        return "the control character", "; take it out"
    if c == "\ufffd":
        return "the replacement character", ", the sign of text that was decoded wrongly; send the original text"
    if ord(c) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(c) <= 0xFDEF:
        return "the code point", ", which is no character; take it out"
    if c == ZERO_WIDTH_SPACE:
        return "the zero-width space", ", which only languages without blanks write (Thai, Khmer, …); take it out"
    if _TURNING.match(c):
        return "the control", ", which shows the text in another order than it is learnt; take it out"
    return "the invisible character", "; take it out"


def source_fault(text: str) -> str | None:
    """Say why a source is no URL although it begins as one; None for a URL of the web, and for any other note."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is None:
        return None
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", text)
        is_url = is_url and (parts.port is None or parts.port > 0)  # Reading a wrong port raises.
    except ValueError:
        is_url = False
    return (
        None if is_url else "is no URL of the web (http or https, with a host and without blanks): correct it, or give a note"
    )


def subject_span(prompt: str, subject: str) -> tuple[int, int] | None:
    """Find the first occurrence of a subject in a prompt, in any Unicode form; None if there is none."""
    for form in (subject, *(unicodedata.normalize(name, subject) for name in ("NFC", "NFD"))):
        if form and (at := prompt.find(form)) >= 0:
            return at, at + len(form)
    return None


def same_text(text: str) -> str:
    """Return what two texts that are the same prompt, or the same target, have in common."""
    return " ".join(unicodedata.normalize("NFC", text.replace(ZERO_WIDTH_SPACE, "")).split())


def fact_of(prompt: Prompt) -> str:
    """Return the text by which a memory knows a prompt: the same for two prompts that are the same."""
    return json.dumps(prompt_key(prompt), ensure_ascii=False)


def prompt_key(prompt: Prompt) -> Hashable:
    """Return a key that two prompts share if they are the same."""
    if isinstance(prompt, str):
        return same_text(prompt)
    return tuple((message.role, same_text(message.content)) for message in prompt.messages)
