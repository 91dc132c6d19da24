"""QAEdit: questions of Natural Questions, TriviaQA and SimpleQA that the model answers wrongly.

{id, source: NQ | TQA | SQA, prompt, target, subject, rephrase, locality: [{loc, loc_ans}]}; read off QAEdit_inter_1k.json of
github.com/WanliYoung/Revisit-Editing-Evaluation. Copies with `target_new` for `target`, with one locality object in place of
the list, or with a list of rephrasings are read, too. `source` (the question's dataset) is part of the id.
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, either, identity, optional_written, text, texts, written
from errata.datasets.formats.probes import probes
from errata.edit import Edit


def matches(record: Record) -> bool:
    if "prompt" not in record or not {"target", "target_new"} & set(record):
        return False
    return "rephrase" in record or _has_loc(record.get("locality"))


def _has_loc(locality: object) -> bool:
    first = locality[0] if isinstance(locality, list) and locality else locality
    return isinstance(first, dict) and "loc" in first


def edit(record: Record, left_out: LeftOut) -> Edit:
    source = record.get("source")
    return Edit(
        prompt=text(record, "prompt"),
        target=written(record, either(record, "target", "target_new")),
        subject=optional_written(record, "subject", left_out),
        rephrasings=texts(record, "rephrase", left_out),
        locality=probes(record, "locality", left_out),
        portability=probes(record, "portability", left_out),
        id=identity(record, "id", f"qaedit-{source}" if isinstance(source, str) and source else "qaedit"),
    )
