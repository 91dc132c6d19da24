"""MQuAKE: a case is a few edits and the multi-hop questions whose answer follows from them together.

{case_id, requested_rewrite: [{prompt with {}, subject, question, target_new: {str}}], questions, new_answer}; read off the
example in the README of github.com/princeton-nlp/MQuAKE as others quote it, and EasyEdit's loader. An edit's own question
is a rephrasing. The multi-hop questions belong to the last edit of the case, after which all its edits are applied.
"""

from __future__ import annotations

from dataclasses import replace

from errata.datasets.formats.counterfact import filled
from errata.datasets.formats.fields import Record, objects, optional_text, text, texts, value
from errata.edit import Code, Edit, EditRejected, Probe


def matches(record: Record) -> bool:
    return isinstance(record.get("requested_rewrite"), list)


def edits(record: Record) -> list[Edit]:
    rewrites = objects(record, "requested_rewrite")
    if not rewrites:
        raise EditRejected("must be a list of at least one rewrite", field="requested_rewrite", code=Code.EMPTY_FIELD)
    found = [_edit(rewrite, index, value(record, "case_id")) for index, rewrite in enumerate(rewrites)]
    questions = texts(record, "questions")
    answer = text(record, "new_answer").strip()
    return [*found[:-1], replace(found[-1], portability=tuple(Probe(question, answer, "multi_hop") for question in questions))]


def _edit(rewrite: Record, index: int, case: object) -> Edit:
    try:
        subject, question = text(rewrite, "subject"), optional_text(rewrite, "question")
        return Edit(
            prompt=filled(text(rewrite, "prompt"), subject, "prompt"),
            target=text(rewrite, "target_new.str").strip(),
            subject=subject,
            rephrasings=() if question is None else (question,),
            id=None if case is None else f"mquake-{case}-{index}",
        )
    except EditRejected as rejected:
        raise EditRejected(rejected.reason, field=f"requested_rewrite[{index}].{rejected.field}", code=rejected.code) from None
