"""Table of the published datasets and their conversions. A new dataset is a file here and a line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from errata.datasets.formats import (
    cknowedit,
    counterfact,
    fever,
    halluedit,
    knowedit,
    mquake,
    mzsre,
    plain,
    qaedit,
    rippleedits,
    rome,
    wikibigedit,
    zsre,
)
from errata.datasets.formats.fields import LeftOut, Record
from errata.edit import Edit


@dataclass(frozen=True)
class Format:
    """One dataset's format.

    `matches` recognises a record by a few characteristic fields, so that a record with another field missing or of the wrong
    type is still recognised. `edits` converts it, appends what it leaves out, and raises `EditRejected` that names the faulty
    field. `fields` are those that a record needs; a misspelt one is compared with them.
    """

    name: str
    fields: tuple[str, ...]
    matches: Callable[[Record], bool]
    edits: Callable[[Record, LeftOut], Sequence[Edit]]


def _format(name: str, fields: str, matches: Callable[[Record], bool], edit: Callable[[Record, LeftOut], Edit]) -> Format:
    return Format(name, tuple(fields.split()), matches, lambda record, left_out: (edit(record, left_out),))


# The order matters where two match: KnowEdit's ZsRE also has the fields of a flat record, and FEVER has all of zsRE's.
FORMATS = {
    found.name: found
    for found in (
        _format("counterfact", "requested_rewrite paraphrase_prompts", counterfact.nested_matches, counterfact.nested),
        Format("mquake", ("requested_rewrite", "questions", "new_answer"), mquake.matches, mquake.edits),
        _format("rippleedits", "edit example_type", rippleedits.matches, rippleedits.edit),
        _format("wikibigedit", "update ans subject", wikibigedit.matches, wikibigedit.edit),
        _format("zsre-easyedit", "src alt subject portability", zsre.easyedit_matches, zsre.easyedit),
        _format("zsre-memit", "src answers subject", zsre.memit_matches, zsre.memit),
        _format("mzsre", "en", mzsre.matches, mzsre.edit),
        _format("fever", "input alternatives prediction", fever.matches, fever.edit),
        _format("zsre-mend", "input alternatives", zsre.mend_matches, zsre.mend),
        _format("cknowedit", "prompt target_old target_new", cknowedit.matches, cknowedit.edit),
        _format("knowedit", "prompt target_new subject locality", knowedit.matches, knowedit.edit),
        _format("counterfact-flat", "prompt target_new subject rephrase_prompt", counterfact.flat_matches, counterfact.flat),
        _format("qaedit", "prompt target subject rephrase locality", qaedit.matches, qaedit.edit),
        _format("rome", "prompt subject target_new", rome.matches, rome.edit),
        _format("halluedit", "subject relation object question", halluedit.matches, halluedit.edit),
        _format("plain", "prompt target", plain.matches, plain.edit),
    )
}


def format_named(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def recognised(record: Record) -> Format | None:
    """Return the format of a record, or None."""
    return next((found for found in FORMATS.values() if found.matches(record)), None)
