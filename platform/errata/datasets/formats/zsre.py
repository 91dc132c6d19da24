"""zsRE: as MEND's structured_*.jsonl has it, as MEMIT's zsre_mend_*.json, and as EasyEdit adds portability to that.

MEND: {input, output: [{answer}], prediction, alternatives, rephrases, filtered_rephrases}, and in some copies {rephrase,
loc, loc_ans}; read off github.com/nicola-decao/KnowledgeEditor and its followers. MEND draws the target from the
alternatives; here it is the first of them, so that a file always gives the same edits. There is no subject. MEMIT:
{subject, src, pred, rephrase, alt, answers, loc, loc_ans}; read off github.com/kmeng01/memit, whose target is answers[0].
Prompts of `loc` are kept unchanged, with "nq question: "; MEMIT's loader adds a question mark.

EasyEdit (zsre_mend_eval_portability_gpt4.json): MEMIT's fields and portability: {New Question, New Answer}. Its target is
`alt`, as in examples/run_zsre_llama2.py of github.com/zjunlp/EasyEdit: the New Question was written about the fact with `alt`
in it ("… the altered information"), so that with answers[0] as the target its answer would be wrong. `answers` is then what
was true before. Records with `alt` and no `answers` are read in the same way.
"""

from __future__ import annotations

from collections.abc import Callable

from errata.datasets.formats.fields import LeftOut, Record, first, identity, optional_text, text, texts, written
from errata.datasets.formats.probes import pair, probes
from errata.edit import Edit


def mend_matches(record: Record) -> bool:
    return "input" in record and bool(
        {"alternatives", "prediction", "filtered_rephrases", "rephrases", "rephrase"} & set(record)
    )


def mend(record: Record, left_out: LeftOut) -> Edit:
    prompt = text(record, "input")
    wordings = texts(record, "filtered_rephrases", left_out) or texts(record, "rephrases", left_out)
    single = optional_text(record, "rephrase", left_out)
    return Edit(
        prompt=prompt,
        target=first(record, "alternatives"),
        rephrasings=tuple(one for one in (*wordings, *([single] if single else [])) if one != prompt),
        locality=pair(record, "loc", "loc_ans", left_out),
        id=identity(record, "id", "zsre"),
    )


def easyedit_matches(record: Record) -> bool:
    return {"src", "alt"} <= set(record) and ("portability" in record or "answers" not in record)


def easyedit(record: Record, left_out: LeftOut) -> Edit:
    return _edit(record, lambda: written(record, "alt"), left_out)


def memit_matches(record: Record) -> bool:
    return "src" in record and bool({"alt", "answers", "loc"} & set(record))


def memit(record: Record, left_out: LeftOut) -> Edit:
    return _edit(record, lambda: first(record, "answers"), left_out)


def _edit(record: Record, target: Callable[[], str], left_out: LeftOut) -> Edit:
    rephrasing = optional_text(record, "rephrase", left_out)
    return Edit(
        prompt=text(record, "src"),
        target=target(),
        subject=written(record, "subject"),
        rephrasings=() if rephrasing is None else (rephrasing,),
        locality=(*pair(record, "loc", "loc_ans", left_out), *probes(record, "locality", left_out)),
        portability=probes(record, "portability", left_out, "one_hop"),
    )
