"""ROME's and MEMIT's requests, and FastEdit's examples: a template, the subject, and the new answer.

{prompt with {}, subject, target_new: {str} | string, target_true?, case_id?}, as the notebooks of github.com/kmeng01/rome pass
them; {prompt with {}, subject, target, queries: [...]}, as data/example.json of github.com/hiyouga/FastEdit has it, whose
queries are rephrasings that it asks after the edit. A prompt that has the subject in place of {} is read, too.
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, either, identity, new_target, optional_written, text, texts
from errata.edit import Edit


def matches(record: Record) -> bool:
    return "prompt" in record and ("target_new" in record or "queries" in record)


def edit(record: Record, left_out: LeftOut) -> Edit:
    return Edit(
        prompt=text(record, "prompt"),
        target=new_target(record, either(record, "target_new", "target")),
        subject=optional_written(record, "subject", left_out),
        rephrasings=texts(record, "queries", left_out),
        id=identity(record, "case_id", "rome"),
    )
