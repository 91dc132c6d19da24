"""RippleEdits: one edit as a whole sentence, and six lists of tests of what should and should not follow from it.

{example_type, edit: {prompt, subject_id, relation, target_id}, Relation_Specifity (sic), Logical_Generalization,
Subject_Aliasing, Compositionality_I, Compositionality_II, Forgetfulness: [{test_queries: [{prompt, answers: [{value,
aliases}]}]}]}; read off README and src/ of github.com/edenbiran/RippleEdits. The file names subject and target by their
Wikidata ids only: the sentence is cut after the verb that ends every phrase of its relations (is, are, follows, is followed
by), at its last place, and there is no subject (KnowEdit has these edits with subjects). The first answer of a query is
taken, with its aliases; queries without one are left out and counted.
"""

from __future__ import annotations

import re

from errata.datasets.formats.fields import LeftOut, Record, objects, text, texts_of, value, written
from errata.edit import Code, Edit, EditRejected, Probe

# Criteria by the kind of probe that they become.
FOLLOW = {
    "Logical_Generalization": "logical",
    "Subject_Aliasing": "alias",
    "Compositionality_I": "two_hop",
    "Compositionality_II": "two_hop",
}
STAY = {"Relation_Specifity": "relation", "Forgetfulness": "forgetfulness"}
VERBS = {"FOLLOWS": "follows", "FOLLOWED_BY": "is followed by"}


def matches(record: Record) -> bool:
    return isinstance(record.get("edit"), dict) and ("example_type" in record or bool({*FOLLOW, *STAY} & set(record)))


def edit(record: Record, left_out: LeftOut) -> Edit:
    prompt, target = _cut(text(record, "edit.prompt"), value(record, "edit.relation"))
    return Edit(prompt, target, locality=_probes(record, STAY, left_out), portability=_probes(record, FOLLOW, left_out))


def _cut(sentence: str, relation: object) -> tuple[str, str]:
    verb = VERBS.get(str(relation), "(?:is|are)")
    found = re.fullmatch(rf"(.* {verb}) (.+?)\.?", sentence.strip(), re.DOTALL)
    if not found:
        raise EditRejected(
            f"{sentence!r} has no verb and answer after it to be cut into", field="edit.prompt", code=Code.INVALID_VALUE
        )
    return found[1], found[2]


def _probes(record: Record, criteria: dict[str, str], left_out: LeftOut) -> tuple[Probe, ...]:
    made = []
    for name, kind in criteria.items():
        try:
            tests = objects(record, name)
        except EditRejected as rejected:
            left_out.append(rejected)
            continue
        for index, test in enumerate(tests):
            field = f"{name}[{index}].test_queries"
            try:
                queries = objects(test, "test_queries")
            except EditRejected as rejected:
                left_out.append(_of(f"{name}[{index}]", rejected))
                continue
            for query in queries:
                try:
                    made.append(_probe(query, kind, left_out))
                except EditRejected as rejected:
                    left_out.append(_of(field, rejected))
    return tuple(made)


def _probe(query: Record, kind: str, left_out: LeftOut) -> Probe:
    answers = objects(query, "answers")
    if not answers:
        raise EditRejected("has no answer", field="answers", code=Code.EMPTY_FIELD)
    target = written(answers[0], "value")
    aliases = texts_of(answers[0].get("aliases"), "answers[0].aliases", left_out)
    return Probe(text(query, "prompt"), target, kind, tuple(alias for alias in aliases if alias != target))


def _of(place: str, fault: EditRejected) -> EditRejected:
    return EditRejected(fault.reason, field=f"{place}.{fault.field}", code=fault.code)
