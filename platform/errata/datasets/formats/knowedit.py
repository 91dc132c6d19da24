"""KnowEdit (WikiData recent and counterfact, ZsRE, WikiBio) as EasyEdit has it.

{subject | concept, prompt | text, target_new | labels, rephrase_prompt?, portability: {Reasoning, Subject_Aliasing,
Logical_Generalization: [...]}, locality: {Relation_Specificity, Forgetfulness: [{prompt, ground_truth}]}}; read off
EasyEdit's loader and its README. `ground_truth` is a string, a list of strings or a list of lists of aliases: the first
string is taken, with its aliases; `prompt` of a probe may be a list of one. Probes without an answer are left out.
"""

from __future__ import annotations

from errata.datasets.formats.fields import LeftOut, Record, either, optional_text, text, written
from errata.datasets.formats.probes import probes
from errata.edit import Edit


def matches(record: Record) -> bool:
    probed = any(isinstance(record.get(name), dict) for name in ("portability", "locality"))
    return bool({"target_new", "labels"} & set(record)) and probed


def edit(record: Record, left_out: LeftOut) -> Edit:
    rephrasings = (optional_text(record, name, left_out) for name in ("rephrase_prompt", "rephrase"))
    return Edit(
        prompt=text(record, either(record, "prompt", "text")),
        target=written(record, either(record, "target_new", "labels")),
        subject=written(record, either(record, "subject", "concept")),
        rephrasings=tuple(one for one in rephrasings if one is not None),
        locality=probes(record, "locality", left_out),
        portability=probes(record, "portability", left_out),
    )
