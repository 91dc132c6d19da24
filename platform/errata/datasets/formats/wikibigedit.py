"""WikiBigEdit: questions about facts that changed in Wikidata.

{subject, update, ans, rephrase, personas, loc, loc_ans, mhop, mhop_ans, tag, ...}; read off EasyEdit's loader of
huggingface.co/datasets/lukasthede/WikiBigEdit; the authors' own experiments call `update` src and `ans` alt. `personas`
asks the same in a character's words, so it is a rephrasing; `mhop` is the consequence. What a fact does not have is null or
empty.
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, optional_text, text, written
from errata.datasets.formats.probes import pair
from errata.edit import Edit


def matches(record: Record) -> bool:
    return "mhop" in record or {"update", "ans"} <= set(record)


def edit(record: Record, left_out: LeftOut) -> Edit:
    rephrasings = (optional_text(record, name, left_out) for name in ("rephrase", "personas"))
    return Edit(
        prompt=text(record, "src" if "src" in record else "update"),
        target=written(record, "alt" if "alt" in record else "ans"),
        subject=written(record, "subject"),
        rephrasings=tuple(one for one in rephrasings if one is not None),
        locality=pair(record, "loc", "loc_ans", left_out),
        portability=pair(record, "mhop", "mhop_ans", left_out, "multi_hop"),
    )
