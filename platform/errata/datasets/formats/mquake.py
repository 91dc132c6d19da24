"""MQuAKE: a case is a few edits and the multi-hop questions whose answer follows from them together.

{case_id, requested_rewrite: [{prompt with {}, subject, question, target_new: {str}}], questions, new_answer,
new_answer_alias?}; read off the example in the README of github.com/princeton-nlp/MQuAKE as others quote it, and EasyEdit's
loader. An edit's own question is a rephrasing. The multi-hop questions belong to the last edit of the case, after which all its
edits are applied.
"""

from __future__ import annotations

from dataclasses import replace

from errata.datasets.formats.counterfact import filled
from errata.datasets.formats.fields import (
    LeftOut,
    Record,
    answer_value,
    identity,
    new_target,
    objects,
    optional_text,
    text,
    texts,
    texts_of,
    value,
    written,
)
from errata.edit import Code, Edit, EditRejected, Probe


def matches(record: Record) -> bool:
    return isinstance(record.get("requested_rewrite"), list)


def edits(record: Record, left_out: LeftOut) -> list[Edit]:
    rewrites = objects(record, "requested_rewrite")
    if not rewrites:
        raise EditRejected("must be a list of at least one rewrite", field="requested_rewrite", code=Code.EMPTY_FIELD)
    case = identity(record, "case_id", "mquake")
    found = [_edit(rewrite, index, case, left_out) for index, rewrite in enumerate(rewrites)]
    return [*found[:-1], replace(found[-1], portability=_asked(record, left_out))]


def _asked(record: Record, left_out: LeftOut) -> tuple[Probe, ...]:
    questions = texts(record, "questions", left_out)
    if not questions:
        return ()
    try:
        answer = answer_value(value(record, "new_answer"), "new_answer")
    except EditRejected as rejected:
        left_out.append(rejected)
        return ()
    aliases = texts_of(record.get("new_answer_alias"), "new_answer_alias", left_out)
    others = tuple(alias for alias in aliases if alias != answer)
    return tuple(Probe(question, answer, "multi_hop", others) for question in questions)


def _edit(rewrite: Record, index: int, case: str | None, left_out: LeftOut) -> Edit:
    faults: LeftOut = []
    try:
        subject, question = written(rewrite, "subject"), optional_text(rewrite, "question", faults)
        made = Edit(
            prompt=filled(text(rewrite, "prompt"), subject, "prompt"),
            target=new_target(rewrite, "target_new"),
            subject=subject,
            rephrasings=() if question is None else (question,),
            id=None if case is None else f"{case}-{index}",
        )
    except EditRejected as rejected:
        raise _of(index, rejected) from None
    left_out += [_of(index, fault) for fault in faults]
    return made


def _of(index: int, fault: EditRejected) -> EditRejected:
    return EditRejected(fault.reason, field=f"requested_rewrite[{index}].{fault.field}", code=fault.code)
