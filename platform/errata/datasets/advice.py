"""Advice about a record whose fields do not fit: the format that it looks like, or the fields that were meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from errata.datasets.formats import plain
from errata.datasets.formats.fields import Record
from errata.datasets.formats.table import FORMATS, Format, recognised
from errata.edit import Code, EditRejected

# Names that other tools have for the fields of our own schema.
SYNONYMS = {
    "question": "prompt",
    "query": "prompt",
    "input": "prompt",
    "instruction": "prompt",
    "src": "prompt",
    "text": "prompt",
    "answer": "target",
    "output": "target",
    "completion": "target",
    "response": "target",
    "label": "target",
    "object": "target",
    "target_new": "target",
    "alt": "target",
    "entity": "subject",
    "concept": "subject",
    "rephrase": "rephrasings",
    "rephrases": "rephrasings",
    "rephrase_prompt": "rephrasings",
    "paraphrase": "rephrasings",
    "paraphrases": "rephrasings",
    "paraphrase_prompts": "rephrasings",
    "queries": "rephrasings",
    "neighborhood_prompts": "locality",
    "case_id": "id",
}
SIMILARITY = 0.7  # of difflib, from 0 to 1


def advised(rejected: EditRejected, record: Record, format_: Format) -> EditRejected:
    """Add advice to a refusal for a field that is missing or unknown. Others are returned as they are."""
    if rejected.code not in (Code.MISSING_FIELD, Code.UNKNOWN_FIELD):
        return rejected
    other = recognised(record)
    if other is not None and other is not format_ and (other.name != "plain" or record.keys() <= set(plain.FIELDS)):
        advice = f"this looks like {other.name}: --format {other.name}"
    elif format_.name == "plain":
        advice = renamings(record, plain.FIELDS)
    else:
        return rejected
    reason = f"{rejected.reason}; {advice}" if advice else rejected.reason
    return EditRejected(reason, edit=rejected.edit, field=rejected.field, code=rejected.code)


def renamings(names: Iterable[str], known: Iterable[str]) -> str:
    """Say which unknown names are probably misspelt or other tools' names, such as `rename answer to target`."""
    names, known = [str(name) for name in names], tuple(known)
    free = [name for name in known if name not in names]
    meant = {name: nearest(name, free) for name in names if name not in known}
    if "answer" in names and "target" in free and "target" not in meant.values():  # A whole answer is no target.
        meant["answer"] = "target"
    return ", ".join(f"rename {name} to {right}" for name, right in meant.items() if right)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` stands for or is nearly spelt like; None if there is none."""
    known = tuple(known)
    plain_name = name.strip().lower().replace(" ", "_").replace("-", "_")
    if SYNONYMS.get(plain_name) in known:
        return SYNONYMS[plain_name]
    return next(iter(get_close_matches(plain_name, known, 1, SIMILARITY)), None)


def unknown_format(record: Record | None) -> EditRejected:
    """Build the refusal of a file in which no format is recognised; it names the nearest one and what to rename."""
    names = [str(name) for name in record or {}]
    fields = ", ".join(names)[:200] or "no fields"
    reason = f"no dataset's format is recognised by its fields ({fields})"
    if record and all(isinstance(one, dict) for one in record.values()):
        reason += "; each field is an object: write a list of such objects, or one a line"
    else:
        name, changes = _nearest_format(names)
        reason += f"; the nearest is {name}: {changes}" if changes else "; give at least prompt and target, or a known format"
    return EditRejected(f"{reason}; name one of {', '.join(FORMATS)}", code=Code.UNKNOWN_FORMAT)


def _nearest_format(names: list[str]) -> tuple[str, str]:
    """Name the format that shares most fields with a record, and the fields to rename for it."""
    best, most, changes = "", 0.0, ""
    for format_ in (FORMATS["plain"], *FORMATS.values()):
        known = plain.FIELDS if format_.name == "plain" else format_.fields
        shared = sum(name in known for name in names)
        renamed = renamings(names, known)
        score = (shared + renamed.count("rename ")) / len(format_.fields)
        if renamed and score > most:
            best, most, changes = format_.name, score, renamed
    return best, changes
