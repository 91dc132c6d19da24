"""Our own schema, documented in docs/data.md: prompt, target, and optionally aliases, subject, rephrasings, locality and more.

The fields are those of `Edit`; `locality` and `portability` are lists of {prompt, target, kind?, aliases?, answer?}. An edit of
chat has a `question` or `messages` in place of the prompt, or a `form`, as `Edit.from_json` reads them, and may have a whole
`answer`.
Days are texts: `valid_from`, `valid_to`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from errata.datasets.formats.fields import LeftOut, Record, optional_written, string, texts, written
from errata.datasets.formats.probes import probes
from errata.edit import ORIGIN, Code, Edit, EditRejected
from errata.text.rules import cleaned

ASKED = ("prompt", "question", "messages", "form")
FIELDS = (
    "prompt",
    "target",
    "aliases",
    "answer",
    "subject",
    "rephrasings",
    "locality",
    "portability",
    "id",
    *ASKED[1:],
    *ORIGIN,
)
_KNOWN, _CHAT = frozenset(FIELDS), frozenset(ASKED[1:])


def matches(record: Record) -> bool:
    return "prompt" in record or "target" in record


def edit(record: Record, left_out: LeftOut) -> Edit:
    if not record.keys() <= _KNOWN:
        unknown = sorted(record.keys() - _KNOWN)
        reason = f"is not a field of an edit; there are {', '.join(FIELDS)}"
        raise EditRejected(reason, field=", ".join(unknown), code=Code.UNKNOWN_FIELD)
    is_of_chat = not _CHAT.isdisjoint(record)
    origin: dict[str, Any] = {name: optional_written(record, name, left_out) for name in ORIGIN}
    made = Edit(
        prompt="" if is_of_chat else string(record, "prompt"),
        target=written(record, "target"),
        aliases=tuple(map(cleaned, texts(record, "aliases", left_out))),
        answer=optional_written(record, "answer", left_out),
        subject=optional_written(record, "subject", left_out),
        rephrasings=texts(record, "rephrasings", left_out),
        locality=probes(record, "locality", left_out),
        portability=probes(record, "portability", left_out),
        id=optional_written(record, "id", left_out),
        **origin,
    )
    return _asked(made, record) if is_of_chat else made


def _asked(edit: Edit, record: Record) -> Edit:
    """Return the edit with prompt, form and earlier messages of the record."""
    given = {name: found for name in ASKED if (found := record.get(name)) is not None}
    asked = Edit.from_json({**given, "target": edit.target})
    return replace(edit, prompt=asked.prompt, form=asked.form, before=asked.before, names_form=asked.names_form)
