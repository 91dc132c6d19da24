"""Our own schema, documented in docs/data.md: prompt, target, and optionally subject, rephrasings, locality, portability, id.

The fields are those of `Edit`; `locality` and `portability` are lists of {prompt, target, kind?}.
"""

from __future__ import annotations

from errata.datasets.formats.fields import Record, objects, optional_text, string, texts, value
from errata.edit import Code, Edit, EditRejected, Probe

FIELDS = ("prompt", "target", "subject", "rephrasings", "locality", "portability", "id")


def matches(record: Record) -> bool:
    return "prompt" in record or "target" in record


def edit(record: Record) -> Edit:
    unknown = [name for name in record if name not in FIELDS]
    if unknown:
        raise EditRejected(
            f"is not a field of an edit; there are {', '.join(FIELDS)}",
            field=", ".join(sorted(unknown)),
            code=Code.UNKNOWN_FIELD,
        )
    return Edit(
        prompt=string(record, "prompt"),
        target=string(record, "target"),
        subject=None if value(record, "subject") is None else string(record, "subject"),
        rephrasings=texts(record, "rephrasings"),
        locality=_probes(record, "locality"),
        portability=_probes(record, "portability"),
        id=None if value(record, "id") is None else string(record, "id"),
    )


def _probes(record: Record, name: str) -> tuple[Probe, ...]:
    probes = []
    for index, probe in enumerate(objects(record, name)):
        try:
            probes.append(Probe(string(probe, "prompt"), string(probe, "target"), optional_text(probe, "kind") or ""))
        except EditRejected as rejected:
            raise EditRejected(rejected.reason, field=f"{name}[{index}].{rejected.field}", code=rejected.code) from None
    return tuple(probes)
