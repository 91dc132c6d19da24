"""FEVER as MEND uses it: claims with two labels, of which the edit sets one.

{input, output: [{answer}], prediction, alternatives, filtered_rephrases, logit}; read off data_classes/fever.py of
github.com/eric-mitchell/mend, which teaches a classifier. Here the claim is the prompt and the label's word (SUPPORTS,
REFUTES) the target: the first alternative to what was predicted. Claims have no subject and no neighbours.
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, first, identity, text, texts
from errata.edit import Code, Edit, EditRejected

LABELS = ("SUPPORTS", "REFUTES")


def matches(record: Record) -> bool:
    labels = [*_listed(record.get("alternatives")), record.get("prediction")]
    return "input" in record and any(label in LABELS for label in labels)


def edit(record: Record, left_out: LeftOut) -> Edit:
    prompt, label = text(record, "input"), first(record, "alternatives")
    if label not in LABELS:
        raise EditRejected(
            f"must begin with one of {', '.join(LABELS)}, not {label!r}", field="alternatives", code=Code.INVALID_VALUE
        )
    rephrasings = tuple(one for one in texts(record, "filtered_rephrases", left_out) if one != prompt)
    return Edit(prompt, label, rephrasings=rephrasings, id=identity(record, "id", "fever"))


def _listed(found: object) -> list[object]:
    return found if isinstance(found, list) else []
