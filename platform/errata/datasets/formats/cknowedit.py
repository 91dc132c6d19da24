"""CKnowEdit: Chinese poems, idioms, facts and traps of logic, with what the model said wrongly.

{prompt, target_old, target_new, rephrase: [...], portability: [{prompt, answer}], locality: [{prompt, answer}]}; read off
examples/CKnowEdit.md and the loader of EasyEdit. There is no subject (EasyEdit takes the whole prompt).
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, optional_written, text, texts, written
from errata.datasets.formats.probes import probes
from errata.edit import Edit


def matches(record: Record) -> bool:
    return {"target_old", "target_new"} <= set(record)


def edit(record: Record, left_out: LeftOut) -> Edit:
    return Edit(
        prompt=text(record, "prompt"),
        target=written(record, "target_new"),
        subject=optional_written(record, "subject", left_out),
        rephrasings=texts(record, "rephrase", left_out),
        locality=probes(record, "locality", left_out),
        portability=probes(record, "portability", left_out),
    )
