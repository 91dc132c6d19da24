"""Table of the published datasets and their conversions. A new dataset is a file here and a line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from errata.datasets.formats import counterfact, fever, knowedit, mquake, plain, rippleedits, wikibigedit, zsre
from errata.datasets.formats.fields import Record
from errata.edit import Code, Edit, EditRejected


@dataclass(frozen=True)
class Format:
    """One dataset's format.

    `matches` recognises a record by a few characteristic fields, so that a record with another field missing or of the wrong
    type is still recognised. `edits` converts it and raises `EditRejected` that names the faulty field.
    """

    name: str
    matches: Callable[[Record], bool]
    edits: Callable[[Record], Sequence[Edit]]


def _single(edit: Callable[[Record], Edit]) -> Callable[[Record], Sequence[Edit]]:
    return lambda record: (edit(record),)


# The order matters where two match: KnowEdit's ZsRE also has the fields of a flat record, and FEVER has all of zsRE's.
FORMATS = {
    found.name: found
    for found in (
        Format("counterfact", counterfact.nested_matches, _single(counterfact.nested)),
        Format("mquake", mquake.matches, mquake.edits),
        Format("rippleedits", rippleedits.matches, _single(rippleedits.edit)),
        Format("wikibigedit", wikibigedit.matches, _single(wikibigedit.edit)),
        Format("zsre-memit", zsre.memit_matches, _single(zsre.memit)),
        Format("fever", fever.matches, _single(fever.edit)),
        Format("zsre-mend", zsre.mend_matches, _single(zsre.mend)),
        Format("knowedit", knowedit.matches, _single(knowedit.edit)),
        Format("counterfact-flat", counterfact.flat_matches, _single(counterfact.flat)),
        Format("plain", plain.matches, _single(plain.edit)),
    )
}


def format_named(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def detect(records: Iterable[Record]) -> Format:
    """Return the format of the first recognised record. Raises `EditRejected` that lists the fields of the first record."""
    seen: Record | None = None
    for record in records:
        seen = record if seen is None else seen
        for found in FORMATS.values():
            if found.matches(record):
                return found
    fields = ", ".join(map(str, seen))[:200] if seen else "no fields"
    raise EditRejected(
        f"no dataset's format is recognised by its fields ({fields}); name one of {', '.join(FORMATS)}",
        code=Code.UNKNOWN_FORMAT,
    )
