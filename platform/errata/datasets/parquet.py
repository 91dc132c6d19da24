"""Edits from and to Parquet columns of our own schema.

A few tests over whole columns find the rows that may be faulty, and only those go through the slow path that names the
field. A good batch therefore costs little more than constructing its edits, which happens as they are consumed. A faulty row
gives an `EditRejected` in place of an `Edit`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from errata.datasets.advice import nearest, renamings
from errata.datasets.completion import PLACE, AbsentSubject, completed
from errata.datasets.formats import plain
from errata.datasets.formats.fields import LeftOut
from errata.edit import ORIGIN, Code, Edit, EditRejected, Probe
from errata.text.rules import BROKEN, INVISIBLE, TURNING, ZERO_WIDTH_SPACE, cleaned

PROBES = pa.list_(
    pa.struct([("prompt", pa.string()), ("target", pa.string()), ("kind", pa.string()), ("aliases", pa.list_(pa.string()))])
)
SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        ("subject", pa.string()),
        ("rephrasings", pa.list_(pa.string())),
        ("locality", PROBES),
        ("portability", PROBES),
        ("id", pa.string()),
        ("form", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("aliases", pa.list_(pa.string())),
        ("answer", pa.string()),
        *((name, pa.string()) for name in ORIGIN),
    ]
)
INDEX_COLUMN = re.compile(r"__index_level_\d+__")  # names under which pandas writes an index
VISIBLE = r"[^\pC\pZ]"  # a text without such a character is blank
# The place of a subject, and the characters that `text_fault` refuses, also those that it takes in some places.
ODD = rf"\{{\}}|[{BROKEN}{TURNING}{INVISIBLE}{ZERO_WIDTH_SPACE}]"
NUMBERS = ("target", "subject", "id")  # columns in which whole numbers are read as their text


def check_schema(schema: pa.Schema, names: Sequence[str]) -> None:
    """Raise `EditRejected` naming a column, of those in `names`, that is missing, unknown or of the wrong type."""
    for name in names:
        if name not in SCHEMA.names:
            meant = nearest(name, (known for known in SCHEMA.names if known not in names))
            reason = f"is not a column of edits; there are {', '.join(SCHEMA.names)}"
            reason += f"; rename {name} to {meant}" if meant else ""
            raise EditRejected(reason, field=name, code=Code.UNKNOWN_FIELD)
        found, wanted = schema.field(name).type, SCHEMA.field(name).type
        if not (_fits(found, wanted) or (name in NUMBERS and pa.types.is_integer(found))):
            advice = "; convert it to text" if pa.types.is_floating(found) or pa.types.is_integer(found) else ""
            raise EditRejected(f"the column must be of {wanted}, not of {found}{advice}", field=name, code=Code.WRONG_TYPE)
    for name in ("prompt", "target"):
        if name not in names:
            advice = renamings(names, SCHEMA.names)
            reason = f"the column is missing; {advice}" if advice else "the column is missing"
            raise EditRejected(reason, field=name, code=Code.MISSING_FIELD)


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return _fits(found.value_type, wanted)
    if pa.types.is_list(wanted):
        return (pa.types.is_list(found) or pa.types.is_large_list(found)) and _fits(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        names = {field.name: field.type for field in found} if pa.types.is_struct(found) else {}
        known = {field.name: field.type for field in wanted}
        is_whole = known.keys() - {"kind", "aliases"} <= names.keys() <= known.keys()
        return is_whole and all(_fits(type_, known[name]) for name, type_ in names.items())
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)


def edits_of(batch: pa.RecordBatch, absent_subject: AbsentSubject, left_out: LeftOut) -> Iterator[Edit | EditRejected]:
    """Edit or fault of each row, in order. The schema must have passed `check_schema`.

    What a row's edit is read without is in `left_out` when it is yielded; the caller empties it.
    """
    for part in _readable(batch):
        if isinstance(part, EditRejected):
            yield part
        else:
            yield from _edits_of(part, absent_subject, left_out)


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | EditRejected]:
    """Record or fault of each row, for any schema. Fields that are null are left out at every depth."""
    for part in _readable(batch):
        if isinstance(part, EditRejected):
            yield part
        else:
            yield from map(without_nulls, part.to_pylist())


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _readable(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | EditRejected]:
    """Yield the whole batch if it is valid; else its rows one by one, with a fault in place of each unreadable row."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        for row in (batch.slice(index, 1) for index in range(len(batch))):
            damage = _damage(row)
            yield row if damage is None else damage
    else:
        yield batch


def _damage(row: pa.RecordBatch) -> EditRejected | None:
    for name in row.schema.names:
        try:
            row.column(name).validate(full=True)
        except pa.ArrowInvalid as damaged:
            return EditRejected(f"is damaged: {damaged}", field=name, code=Code.UNREADABLE_RECORD)
    return None


def _edits_of(batch: pa.RecordBatch, absent_subject: AbsentSubject, left_out: LeftOut) -> Iterator[Edit | EditRejected]:
    columns = {name: _plain_type(batch.column(name)) for name in batch.schema.names}
    prompts, targets, subjects, ids = (_texts(columns.get(name), len(batch)) for name in ("prompt", "target", "subject", "id"))
    rephrasings = columns.get("rephrasings")
    suspects = _suspects(columns, prompts, subjects)
    made = map(
        Edit,
        prompts,
        targets,
        subjects,
        _groups(rephrasings, _values(rephrasings), len(batch)),
        _groups(columns.get("locality"), _probes(columns.get("locality")), len(batch)),
        _groups(columns.get("portability"), _probes(columns.get("portability")), len(batch)),
        ids,
    )
    if not suspects:
        yield from made
        return
    for index, edit in enumerate(made):
        yield _checked_row(batch, index, absent_subject, left_out) if index in suspects else edit


def _plain_type(column: pa.Array) -> pa.Array:
    is_foreign = pa.types.is_dictionary(column.type) or pa.types.is_integer(column.type) or pa.types.is_string_view(column.type)
    return column.cast(pa.string()) if is_foreign else column


def _texts(column: pa.Array | None, length: int) -> list[str | None]:
    return [None] * length if column is None else column.to_pylist()


def _suspects(columns: dict[str, pa.Array], prompts: Sequence[Any], subjects: Sequence[Any]) -> set[int]:
    """Find the rows that may be faulty or not clean, templates, of chat, with aliases or an origin; others decide."""
    num_rows = len(prompts)
    if not _lists_are_whole(columns):
        return set(range(num_rows))
    is_suspect = np.zeros(num_rows, dtype=bool)
    for name, is_good in (("prompt", _are_texts), ("target", _are_clean), ("subject", _are_clean), ("id", _are_clean)):
        column = columns.get(name)
        if column is not None and column.null_count < num_rows:
            good = pc.fill_null(is_good(column), name not in ("prompt", "target"))
            is_suspect |= ~good.to_numpy(zero_copy_only=False)
        elif name in ("prompt", "target"):
            is_suspect[:] = True
    for name in ("form", "messages", "aliases", "answer", *ORIGIN):
        if name in columns:
            is_suspect |= columns[name].is_valid().to_numpy(zero_copy_only=False)
    pairs = zip(prompts, subjects, strict=True)
    absent = {index for index, (prompt, one) in enumerate(pairs) if one is not None and (not prompt or one not in prompt)}
    return absent.union(np.flatnonzero(is_suspect).tolist())


def _are_texts(strings: pa.Array) -> pa.Array:
    """Test each text: something in it is visible, and nothing is a place for the subject or no text."""
    if pc.all(pc.ascii_is_printable(strings)).as_py() is not False and not _has_place(strings):
        return pc.not_equal(pc.ascii_trim_whitespace(strings), "")
    is_visible, is_odd = (pc.match_substring_regex(strings, pattern) for pattern in (VISIBLE, ODD))
    return pc.and_(is_visible, pc.invert(is_odd))


def _has_place(strings: pa.Array) -> bool:
    """Test whether {} may be in one of the texts, by one search of all their bytes."""
    data = strings.buffers()[2]
    return data is not None and PLACE.encode() in data.to_pybytes()


def _are_clean(strings: pa.Array) -> pa.Array:
    """Test each target or subject: a text, and equal to what `cleaned` makes of it."""
    is_clean = pc.and_(_are_texts(strings), pc.equal(pc.utf8_trim_whitespace(strings), strings))
    if pc.all(pc.string_is_ascii(strings)).as_py() is not False:
        return is_clean
    rest = [text is None or text.isascii() or cleaned(text) == text for text in strings.to_pylist()]
    return pc.and_(is_clean, pa.array(rest))


def _lists_are_whole(columns: dict[str, pa.Array]) -> bool:
    """Test that every rephrasing is a text, every probe has a prompt and a clean target, and none is a template."""
    if not _all(_flat(columns.get("rephrasings")), _are_texts):
        return False
    for name in ("locality", "portability"):
        probes = _flat(columns.get(name))
        if len(probes) and not (
            not probes.null_count
            and not pa.types.is_null(probes.type)
            and _all(pc.struct_field(probes, "prompt"), _are_texts)
            and _all(pc.struct_field(probes, "target"), _are_clean)
            and not _have_aliases(probes)
        ):
            return False
    return True


def _have_aliases(probes: pa.Array) -> bool:
    """Say if a probe has aliases, which are checked row by row."""
    if probes.type.get_field_index("aliases") < 0:
        return False
    found = pc.struct_field(probes, "aliases")
    if pa.types.is_null(found.type):
        return False
    return bool(pc.any(pc.greater(pc.fill_null(pc.list_value_length(found), 0), 0)).as_py())


def _all(strings: pa.Array, is_good: Callable[[pa.Array], pa.Array]) -> bool:
    if not len(strings):
        return True
    if strings.null_count or pa.types.is_null(strings.type):
        return False
    return bool(pc.all(is_good(_plain_type(strings))).as_py())


def _flat(column: pa.Array | None) -> pa.Array:
    """All values of all lists of a column."""
    if column is None or pa.types.is_null(column.type):
        return pa.array([], pa.null())
    return column.flatten()


def _values(column: pa.Array | None) -> list[Any]:
    return _flat(column).to_pylist()


def _probes(column: pa.Array | None) -> Iterable[Probe]:
    """Probes of all lists of a column, constructed lazily."""
    flat = _flat(column)
    if not len(flat) or pa.types.is_null(flat.type):
        return ()
    prompts, targets = (pc.struct_field(flat, part).to_pylist() for part in ("prompt", "target"))
    if flat.type.get_field_index("kind") < 0 or (kinds := pc.struct_field(flat, "kind")).null_count == len(flat):
        return map(Probe, prompts, targets)
    return map(Probe, prompts, targets, (kind or "" for kind in kinds.to_pylist()))


def _groups(column: pa.Array | None, values: Iterable[Any], length: int) -> Iterator[tuple[Any, ...]]:
    """Regroup the values of a list column by row."""
    if column is None or column.null_count == length:
        return repeat((), length)
    left = iter(values)
    return (tuple(islice(left, count)) for count in pc.fill_null(pc.list_value_length(column), 0).to_pylist())


def _checked_row(batch: pa.RecordBatch, index: int, absent_subject: AbsentSubject, left_out: LeftOut) -> Edit | EditRejected:
    row = batch.slice(index, 1).to_pylist()[0]
    given = {name: found for name, found in row.items() if found is not None and found != []}
    try:
        return completed(plain.edit(given, left_out), absent_subject, left_out)
    except EditRejected as rejected:
        return rejected


def batch_of(edits: Sequence[Edit]) -> pa.RecordBatch:
    """Columns of edits by `SCHEMA`. An empty list is written as null, like a field that was not given."""
    columns: list[list[Any]] = [
        [edit.prompt for edit in edits],
        [edit.target for edit in edits],
        [edit.subject for edit in edits],
        [edit.rephrasings or None for edit in edits],
        [_plain(edit.locality) for edit in edits],
        [_plain(edit.portability) for edit in edits],
        [edit.id for edit in edits],
        [edit.to_json().get("form") for edit in edits],
        [edit.to_json()["messages"] if edit.before else None for edit in edits],
        [edit.aliases or None for edit in edits],
        [edit.answer for edit in edits],
        *([getattr(edit, name) for edit in edits] for name in ORIGIN),
    ]
    return pa.record_batch([pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _plain(probes: Sequence[Probe]) -> list[dict[str, Any]] | None:
    return [probe.to_json() for probe in probes] or None
