"""zsRE: as MEND's structured_*.jsonl has it, and as MEMIT's zsre_mend_*.json.

MEND: {input, output: [{answer}], prediction, alternatives, rephrases, filtered_rephrases}, and in some copies {rephrase,
loc, loc_ans}; read off github.com/nicola-decao/KnowledgeEditor and its followers. MEND draws the target from the
alternatives; here it is the first of them, so that a file always gives the same edits. There is no subject. MEMIT:
{subject, src, pred, rephrase, alt, answers, loc, loc_ans}; read off github.com/kmeng01/memit, whose target is answers[0]
(EasyEdit takes `alt`). Prompts of `loc` are kept unchanged, with "nq question: "; MEMIT's loader adds a question mark.
"""

from __future__ import annotations

from errata.datasets.formats.fields import Record, first, identity, optional_text, text, texts
from errata.edit import Edit, Probe


def mend_matches(record: Record) -> bool:
    return "input" in record and bool(
        {"alternatives", "prediction", "filtered_rephrases", "rephrases", "rephrase"} & set(record)
    )


def mend(record: Record) -> Edit:
    prompt = text(record, "input")
    wordings = texts(record, "filtered_rephrases") or texts(record, "rephrases")
    single = optional_text(record, "rephrase")
    return Edit(
        prompt=prompt,
        target=first(record, "alternatives").strip(),
        rephrasings=tuple(one for one in (*wordings, *([single] if single else [])) if one != prompt),
        locality=_neighbour(record),
        id=identity(record, "id", "zsre"),
    )


def memit_matches(record: Record) -> bool:
    return "src" in record and bool({"alt", "answers", "loc"} & set(record))


def memit(record: Record) -> Edit:
    return Edit(
        prompt=text(record, "src"),
        target=first(record, "answers").strip(),
        subject=text(record, "subject"),
        rephrasings=(text(record, "rephrase"),),
        locality=_neighbour(record),
    )


def _neighbour(record: Record) -> tuple[Probe, ...]:
    prompt = optional_text(record, "loc")
    return () if prompt is None else (Probe(prompt, text(record, "loc_ans").strip()),)
