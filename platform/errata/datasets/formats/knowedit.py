"""KnowEdit (WikiData recent and counterfact, ZsRE, WikiBio) as EasyEdit has it.

{subject | concept, prompt | text, target_new | labels, rephrase_prompt?, portability: {Reasoning, Subject_Aliasing,
Logical_Generalization: [...]}, locality: {Relation_Specificity, Forgetfulness: [{prompt, ground_truth}]}}; read off
EasyEdit's loader and its README. `ground_truth` is a string, a list of strings or a list of lists of aliases: the first
string is taken; `prompt` of a probe may be a list of one. Probes without an answer are left out.
"""

from __future__ import annotations

from typing import Any

from errata.datasets.formats.fields import Record, objects, optional_text, text, value
from errata.edit import Code, Edit, EditRejected, Probe

KINDS = {
    "Reasoning": "reasoning",
    "Subject_Aliasing": "alias",
    "Logical_Generalization": "logical",
    "Relation_Specificity": "relation",
    "Forgetfulness": "forgetfulness",
}


def matches(record: Record) -> bool:
    probed = any(isinstance(record.get(name), dict) for name in ("portability", "locality"))
    return bool({"target_new", "labels"} & set(record)) and probed


def edit(record: Record) -> Edit:
    rephrasings = (optional_text(record, name) for name in ("rephrase_prompt", "rephrase"))
    return Edit(
        prompt=_either(record, "prompt", "text"),
        target=_either(record, "target_new", "labels").strip(),
        subject=_either(record, "subject", "concept"),
        rephrasings=tuple(one for one in rephrasings if one is not None),
        locality=_probes(record, "locality"),
        portability=_probes(record, "portability"),
    )


def _either(record: Record, name: str, other: str) -> str:
    return text(record, other if name not in record and other in record else name)


def _probes(record: Record, name: str) -> tuple[Probe, ...]:
    groups = value(record, name)
    if groups is not None and not isinstance(groups, dict):
        raise EditRejected("must be an object of lists of {prompt, ground_truth}", field=name, code=Code.WRONG_TYPE)
    probes = []
    for group in groups or {}:
        for index, probe in enumerate(objects(record, f"{name}.{group}")):
            field = f"{name}.{group}[{index}]"
            prompt, answer = _string(probe, "prompt", field), _string(probe, "ground_truth", field)
            if prompt and answer:
                probes.append(Probe(prompt, answer.strip(), KINDS.get(group, str(group))))
    return tuple(probes)


def _string(probe: Record, name: str, field: str) -> str | None:
    """Return a string, or the first string of a list or of a list of lists; None if the lists are empty."""
    found: Any = probe.get(name)
    while isinstance(found, list):
        found = found[0] if found else ""
    if not isinstance(found, str):
        raise EditRejected("must be a string, or a list that begins with one", field=f"{field}.{name}", code=Code.WRONG_TYPE)
    return found or None
