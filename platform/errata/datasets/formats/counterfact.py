"""CounterFact: nested as the authors of ROME published it (MEMIT's multi_counterfact too), and flat as EasyEdit splits it.

Nested: {case_id, requested_rewrite: {prompt with {}, subject, target_new: {str}, target_true: {str}}, paraphrase_prompts,
neighborhood_prompts, attribute_prompts, generation_prompts}; read off the loaders of github.com/kmeng01/memit. Neighbours
are of the same relation and truth, so their answer is target_true. Attribute prompts (for others, target_new is true)
and generation prompts (no answer) are left out. Flat: {prompt, target_new, subject, ground_truth, rephrase_prompt,
locality_prompt, locality_ground_truth}, the last three optional; read off the files.
"""

from __future__ import annotations

from errata.datasets.formats.fields import (
    LeftOut,
    Record,
    answer_value,
    identity,
    new_target,
    optional_text,
    text,
    texts,
    value,
    written,
)
from errata.datasets.formats.probes import pair
from errata.edit import Code, Edit, EditRejected, Probe


def nested_matches(record: Record) -> bool:
    return isinstance(record.get("requested_rewrite"), dict)


def nested(record: Record, left_out: LeftOut) -> Edit:
    subject = written(record, "requested_rewrite.subject")
    return Edit(
        prompt=filled(text(record, "requested_rewrite.prompt"), subject, "requested_rewrite.prompt"),
        target=new_target(record, "requested_rewrite.target_new"),
        subject=subject,
        rephrasings=texts(record, "paraphrase_prompts", left_out),
        locality=_neighbours(record, left_out),
        id=identity(record, "case_id", "counterfact"),
    )


def _neighbours(record: Record, left_out: LeftOut) -> tuple[Probe, ...]:
    """Ask the neighbours for target_true. Without it they are left out: they have no answer."""
    prompts, field = texts(record, "neighborhood_prompts", left_out), "requested_rewrite.target_true.str"
    if not prompts:
        return ()
    try:
        truth = answer_value(value(record, field), field)
    except EditRejected as rejected:
        left_out.append(rejected)
        return ()
    return tuple(Probe(prompt, truth) for prompt in prompts)


def filled(template: str, subject: str, field: str) -> str:
    """Fill the subject into a template that has {} in its place. A prompt that has the subject itself is kept."""
    if "{}" not in template and subject not in template:
        raise EditRejected("has no {} in place of the subject", field=field, code=Code.INVALID_VALUE)
    return template.replace("{}", subject)


def flat_matches(record: Record) -> bool:
    return "target_new" in record and bool({"rephrase_prompt", "locality_prompt"} & set(record))


def flat(record: Record, left_out: LeftOut | None = None) -> Edit:
    """Convert a flat record; the testbed calls it for records of which nothing is left out."""
    left_out = [] if left_out is None else left_out
    rephrasing = optional_text(record, "rephrase_prompt", left_out)
    return Edit(
        prompt=text(record, "prompt"),
        target=written(record, "target_new"),
        subject=written(record, "subject"),
        rephrasings=() if rephrasing is None else (rephrasing,),
        locality=pair(record, "locality_prompt", "locality_ground_truth", left_out),
        id=identity(record, "case_id", "counterfact"),
    )
