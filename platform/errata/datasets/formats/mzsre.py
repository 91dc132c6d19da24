"""MzsRE and Bi-ZsRE: zsRE in a pair of languages, of which the first is edited and the other asked.

{en: {subject, src, rephrase, alt, loc, loc_ans, portability: {New Question, New Answer}}, zh: {the same}}, with any names of
languages; read off data/MzsRE/mzsre_test_duplicate_enzh.json of github.com/weixuan-wang123/ReMaKE and run_bizsre.py of
github.com/krystalan/Bi_ZsRE. As there, the edit is `src` and `alt` of one language, here the one that a record has first (the
files exist in both orders), and the other language's questions test whether it crosses over: `src` and `rephrase` are
portability of the kind cross_lingual, answered by that language's `alt`. Its `loc` and its New Question are probes as well.
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, optional_text, text, written
from errata.datasets.formats.probes import pair, probes
from errata.edit import Code, Edit, EditRejected, Probe


def matches(record: Record) -> bool:
    return bool(record) and all(isinstance(one, dict) and {"src", "alt"} & set(one) for one in record.values())


def edit(record: Record, left_out: LeftOut) -> Edit:
    made: Edit | None = None
    for language, part in record.items():
        faults: LeftOut = []
        try:
            if not isinstance(part, dict):
                raise EditRejected("must be an object with src and alt", field=None, code=Code.WRONG_TYPE)
            made = _edit(part, faults) if made is None else _asked(made, part, faults)
        except EditRejected as rejected:
            raise _of(language, rejected) from None
        left_out += [_of(language, fault) for fault in faults]
    if made is None:
        raise EditRejected("has no language; give {en: {src, alt, …}, …}", code=Code.MISSING_FIELD)
    return made


def _edit(part: Record, left_out: LeftOut) -> Edit:
    rephrasing = optional_text(part, "rephrase", left_out)
    return Edit(
        prompt=text(part, "src"),
        target=written(part, "alt"),
        subject=written(part, "subject"),
        rephrasings=() if rephrasing is None else (rephrasing,),
        locality=pair(part, "loc", "loc_ans", left_out),
        portability=probes(part, "portability", left_out, "one_hop"),
    )


def _asked(edit: Edit, part: Record, left_out: LeftOut) -> Edit:
    """Add the questions of another language to an edit."""
    crossing = [
        probe
        for question in ("src", "rephrase")
        if question in part
        for probe in pair(part, question, "alt", left_out, "cross_lingual")
    ]
    portability: tuple[Probe, ...] = (*edit.portability, *crossing, *probes(part, "portability", left_out, "one_hop"))
    locality = (*edit.locality, *pair(part, "loc", "loc_ans", left_out))
    return Edit(edit.prompt, edit.target, edit.subject, edit.rephrasings, locality, portability)


def _of(language: str, fault: EditRejected) -> EditRejected:
    field = language if fault.field is None else f"{language}.{fault.field}"
    return EditRejected(fault.reason, field=field, code=fault.code)
