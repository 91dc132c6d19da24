"""Our own schema, documented in docs/data.md: prompt, target, and optionally subject, rephrasings, locality, portability, id.

The fields are those of `Edit`; `locality` and `portability` are lists of {prompt, target, kind?}.
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, optional_written, string, texts, written
from errata.datasets.formats.probes import probes
from errata.edit import Code, Edit, EditRejected

FIELDS = ("prompt", "target", "subject", "rephrasings", "locality", "portability", "id")
_KNOWN = frozenset(FIELDS)


def matches(record: Record) -> bool:
    return "prompt" in record or "target" in record


def edit(record: Record, left_out: LeftOut) -> Edit:
    if not record.keys() <= _KNOWN:
        unknown = sorted(record.keys() - _KNOWN)
        reason = f"is not a field of an edit; there are {', '.join(FIELDS)}"
        raise EditRejected(reason, field=", ".join(unknown), code=Code.UNKNOWN_FIELD)
    return Edit(
        prompt=string(record, "prompt"),
        target=written(record, "target"),
        subject=optional_written(record, "subject", left_out),
        rephrasings=texts(record, "rephrasings", left_out),
        locality=probes(record, "locality", left_out),
        portability=probes(record, "portability", left_out),
        id=optional_written(record, "id", left_out),
    )
