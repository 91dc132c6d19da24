"""WikiBigEdit: questions about facts that changed in Wikidata.

{subject, update, ans, rephrase, personas, loc, loc_ans, mhop, mhop_ans, tag, ...}; read off EasyEdit's loader of
huggingface.co/datasets/lukasthede/WikiBigEdit; the authors' own experiments call `update` src and `ans` alt. `personas`
asks the same in a character's words, so it is a rephrasing; `mhop` is the consequence. What a fact does not have is null or
empty.
"""

from __future__ import annotations

from errata.datasets.formats.fields import Record, optional_text, text
from errata.edit import Edit, Probe


def matches(record: Record) -> bool:
    return "mhop" in record or {"update", "ans"} <= set(record)


def edit(record: Record) -> Edit:
    return Edit(
        prompt=text(record, "src" if "src" in record else "update"),
        target=text(record, "alt" if "alt" in record else "ans").strip(),
        subject=text(record, "subject"),
        rephrasings=tuple(one for name in ("rephrase", "personas") if (one := optional_text(record, name)) is not None),
        locality=_probe(record, "loc", "loc_ans"),
        portability=_probe(record, "mhop", "mhop_ans", "multi_hop"),
    )


def _probe(record: Record, question: str, answer: str, kind: str = "") -> tuple[Probe, ...]:
    """Empty where the question or its answer is not given."""
    prompt, target = optional_text(record, question), optional_text(record, answer)
    return () if prompt is None or target is None else (Probe(prompt, target.strip(), kind),)
