"""Keys by which the journal finds the corrections of a question and of a subject: digests, since texts may be long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from errata.edit_memory.subjects import name_in, plain_words
from errata.text.rules import same_text


class FactKeys(NamedTuple):
    """The keys of an edit's question and of its subject."""

    question: str
    subject: str


def question_key(edit: Mapping[str, Any]) -> str:
    """Return the key of an edit's question: the same for two edits that are asked the same in any form."""
    earlier = [[message["role"], same_text(message["content"])] for message in edit.get("messages", ())[:-1]]
    return _digest(json.dumps([earlier, same_text(_prompt(edit))]))


def subject_key(text: str) -> str:
    """Return the key of a subject: the same for two that have the same words, apart from capitals and accents."""
    return _digest(" ".join(plain_words(text)))


def keys_of(edit: Mapping[str, Any]) -> FactKeys:
    """Return the keys of an edit. Its subject is the one that it names or the longest name in its question."""
    return FactKeys(question_key(edit), subject_key(edit.get("subject") or name_in(_prompt(edit))))


def _prompt(edit: Mapping[str, Any]) -> str:
    return str(edit.get("prompt") or "")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
