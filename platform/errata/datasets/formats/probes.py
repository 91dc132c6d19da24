"""Probes in the shapes that published files have. A probe at fault is left out; the edit stays.

As two fields of the record: {loc, loc_ans}. As one field: {prompt, ground_truth} (also {prompt, target}, {prompt, answer},
{question, answer}, {loc, loc_ans} and zsRE's {New Question, New Answer}), a list of such objects, lists in lists, or an object
of named groups of any of these ({"Reasoning": [...]}, {"Reasoning": {...}}). An answer may be a list, or a list of lists of
aliases, of which the first is taken, and the others of its group as aliases; so are `aliases` of an object with one question.
Questions and answers may be lists of equal length, as EasyEdit passes them. Read off EasyEdit's loaders and examples, and the
files of QAEdit, CKnowEdit and zsRE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.datasets.formats.fields import LeftOut, Record, answer_aliases, answer_value, kind_of, texts_of, value
from errata.edit import Code, EditRejected, Probe

QUESTIONS = ("prompt", "question", "loc", "New Question")
ANSWERS = ("target", "ground_truth", "answer", "loc_ans", "New Answer")
KINDS = {  # of KnowEdit's groups
    "Reasoning": "reasoning",
    "reasoning": "reasoning",
    "Subject_Aliasing": "alias",
    "Logical_Generalization": "logical",
    "Relation_Specificity": "relation",
    "Forgetfulness": "forgetfulness",
}
MAX_DEPTH = 8  # of lists and groups; real files have at most three


def pair(record: Record, question: str, answer: str, left_out: LeftOut, kind: str = "") -> tuple[Probe, ...]:
    """Return the probe that two fields of a record make; none if neither is given, or one is at fault."""
    if question not in record and answer not in record:
        return ()
    try:
        asked, answered = _question(value(record, question), question), value(record, answer)
        if answered is None:
            raise EditRejected(f"is not given, so {question} is no probe", field=answer, code=Code.MISSING_FIELD)
        return (Probe(asked, answer_value(answered, answer), kind),)
    except EditRejected as rejected:
        left_out.append(rejected)
        return ()


def probes(record: Record, name: str, left_out: LeftOut, kind: str = "") -> tuple[Probe, ...]:
    """Return the probes of a field in any of the shapes; `kind` is that of probes without a group or a kind of their own.

    Raises `EditRejected` if the field is a text or a number.
    """
    found = record.get(name)
    if found is None and name not in record:
        return ()
    if isinstance(found, bool | int | float) or (isinstance(found, str) and found.strip()):
        raise EditRejected(
            f"must be a list of objects with a question and its answer ({{prompt, target}}), not {kind_of(found)}",
            field=name,
            code=Code.WRONG_TYPE,
        )
    made: list[Probe] = []
    if not found:
        left_out.append(EditRejected("is empty", field=name, code=Code.EMPTY_FIELD))
    else:
        _collect(found, name, kind, made, left_out, MAX_DEPTH)
    return tuple(made)


def _collect(found: Any, field: str, kind: str, made: list[Probe], left_out: LeftOut, depth: int) -> None:
    if not depth:
        left_out.append(EditRejected(f"is nested more than {MAX_DEPTH} deep", field=field, code=Code.WRONG_TYPE))
    elif isinstance(found, list):
        for index, one in enumerate(found):
            _collect(one, f"{field}[{index}]", kind, made, left_out, depth - 1)
    elif not isinstance(found, Mapping):
        reason = f"must be an object with a question and its answer, not {kind_of(found)}"
        left_out.append(EditRejected(reason, field=field, code=Code.WRONG_TYPE))
    elif "prompt" in found or any(name in found for name in QUESTIONS):
        try:
            made += _probes_of(found, field, kind, left_out)
        except EditRejected as rejected:
            left_out.append(rejected)
    elif any(name in found for name in ANSWERS):
        left_out.append(EditRejected("has no question", field=field, code=Code.MISSING_FIELD))
    else:
        for group, inner in found.items():
            if not inner and not isinstance(inner, bool | int | float):
                left_out.append(EditRejected("is empty", field=f"{field}.{group}", code=Code.EMPTY_FIELD))
            else:
                _collect(inner, f"{field}.{group}", KINDS.get(group, str(group)), made, left_out, depth - 1)


def _probes_of(found: Record, field: str, kind: str, left_out: LeftOut) -> list[Probe]:
    """Make the probes of one object: one, or as many as its lists of questions and answers are long."""
    asked = next(name for name in QUESTIONS if name in found)
    answered = next((name for name in ANSWERS if name in found), ANSWERS[0])
    question, answer = found[asked], found.get(answered)
    own = found.get("kind")
    kind = own if isinstance(own, str) and own else kind
    if isinstance(question, list) and len(question) > 1 and isinstance(answer, list) and len(answer) == len(question):
        return [
            Probe(_question(one, f"{field}.{asked}[{index}]"), answer_value(other, f"{field}.{answered}[{index}]"), kind)
            for index, (one, other) in enumerate(zip(question, answer, strict=True))
        ]
    if isinstance(question, list) and len(question) == 1:
        question = question[0]
    target = answer_value(answer, f"{field}.{answered}")
    others = answer_aliases(answer, left_out, f"{field}.{answered}")
    others += texts_of(found.get("aliases"), f"{field}.aliases", left_out)
    aliases = tuple(dict.fromkeys(other for other in others if other != target))
    return [Probe(_question(question, f"{field}.{asked}"), target, kind, aliases)]


def _question(found: Any, field: str) -> str:
    if isinstance(found, str):
        if found.strip():
            return found
        raise EditRejected("is empty", field=field, code=Code.EMPTY_FIELD)
    instead = "" if found is None else f", not {kind_of(found)}"
    code = Code.MISSING_FIELD if found is None else Code.WRONG_TYPE
    raise EditRejected(f"must be given as a string{instead}", field=field, code=code)
