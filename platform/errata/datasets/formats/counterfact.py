"""CounterFact: nested as the authors of ROME published it (MEMIT's multi_counterfact too), and flat as EasyEdit splits it.

Nested: {case_id, requested_rewrite: {prompt with {}, subject, target_new: {str}, target_true: {str}}, paraphrase_prompts,
neighborhood_prompts, attribute_prompts, generation_prompts}; read off the loaders of github.com/kmeng01/memit. Neighbours
are of the same relation and truth, so their answer is target_true. Attribute prompts (for others, target_new is true)
and generation prompts (no answer) are left out. Flat: {prompt, target_new, subject, ground_truth, rephrase_prompt,
locality_prompt, locality_ground_truth}; read off the files.
"""

from __future__ import annotations

from errata.datasets.formats.fields import Record, identity, text, texts
from errata.edit import Code, Edit, EditRejected, Probe


def nested_matches(record: Record) -> bool:
    return isinstance(record.get("requested_rewrite"), dict)


def nested(record: Record) -> Edit:
    subject = text(record, "requested_rewrite.subject")
    truth = text(record, "requested_rewrite.target_true.str").strip()
    return Edit(
        prompt=filled(text(record, "requested_rewrite.prompt"), subject, "requested_rewrite.prompt"),
        target=text(record, "requested_rewrite.target_new.str").strip(),
        subject=subject,
        rephrasings=texts(record, "paraphrase_prompts"),
        locality=tuple(Probe(prompt, truth) for prompt in texts(record, "neighborhood_prompts")),
        id=identity(record, "case_id", "counterfact"),
    )


def filled(template: str, subject: str, field: str) -> str:
    """Fill the subject into a template that has {} in its place."""
    if "{}" not in template:
        raise EditRejected("has no {} in place of the subject", field=field, code=Code.INVALID_VALUE)
    return template.replace("{}", subject)


def flat_matches(record: Record) -> bool:
    return "target_new" in record and bool({"rephrase_prompt", "locality_prompt"} & set(record))


def flat(record: Record) -> Edit:
    return Edit(
        prompt=text(record, "prompt"),
        target=text(record, "target_new").strip(),
        subject=text(record, "subject"),
        rephrasings=(text(record, "rephrase_prompt"),),
        locality=(Probe(text(record, "locality_prompt"), text(record, "locality_ground_truth").strip()),),
        id=identity(record, "case_id", "counterfact"),
    )
