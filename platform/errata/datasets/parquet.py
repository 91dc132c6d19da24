"""Edits from and to Parquet columns of our own schema.

A few tests over whole columns find the rows that may be faulty, and only those go through the slow path that names the
field. A good batch therefore costs little more than constructing its edits, which happens as they are consumed. A faulty row
gives an `EditRejected` in place of an `Edit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from errata.datasets.formats import plain
from errata.edit import Code, Edit, EditRejected, Probe

PROBES = pa.list_(pa.struct([("prompt", pa.string()), ("target", pa.string()), ("kind", pa.string())]))
SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        ("subject", pa.string()),
        ("rephrasings", pa.list_(pa.string())),
        ("locality", PROBES),
        ("portability", PROBES),
        ("id", pa.string()),
    ]
)


def check_schema(schema: pa.Schema) -> None:
    """Raise `EditRejected` naming a column that is missing, unknown or of the wrong type."""
    for name in schema.names:
        if name not in SCHEMA.names:
            raise EditRejected(
                f"is not a column of edits; there are {', '.join(SCHEMA.names)}", field=name, code=Code.UNKNOWN_FIELD
            )
        found, wanted = schema.field(name).type, SCHEMA.field(name).type
        if not _fits(found, wanted):
            raise EditRejected(f"the column must be of {wanted}, not of {found}", field=name, code=Code.WRONG_TYPE)
    for name in ("prompt", "target"):
        if name not in schema.names:
            raise EditRejected("the column is missing", field=name, code=Code.MISSING_FIELD)


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return _fits(found.value_type, wanted)
    if pa.types.is_list(wanted):
        return (pa.types.is_list(found) or pa.types.is_large_list(found)) and _fits(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        names = {field.name: field.type for field in found} if pa.types.is_struct(found) else {}
        return {"prompt", "target"} <= set(names) <= {"prompt", "target", "kind"} and all(
            _fits(type_, pa.string()) for type_ in names.values()
        )
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)


def edits_of(batch: pa.RecordBatch) -> Iterator[Edit | EditRejected]:
    """Edit or fault of each row, in order. The schema must have passed `check_schema`."""
    for part in _readable(batch):
        if isinstance(part, EditRejected):
            yield part
        else:
            yield from _edits_of(part)


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


def _edits_of(batch: pa.RecordBatch) -> Iterator[Edit | EditRejected]:
    columns = {name: batch.column(name) for name in batch.schema.names}
    prompts, targets, subjects, ids = (_texts(columns.get(name), len(batch)) for name in ("prompt", "target", "subject", "id"))
    rephrasings = columns.get("rephrasings")
    suspects = _suspects(prompts, targets, subjects)
    if not _lists_are_whole(columns):
        suspects = set(range(len(batch)))
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
        yield _checked_row(batch, index) if index in suspects else edit


def _texts(column: pa.Array | None, length: int) -> list[str | None]:
    return [None] * length if column is None else column.to_pylist()


def _suspects(prompts: Sequence[Any], targets: Sequence[Any], subjects: Sequence[Any]) -> set[int]:
    """Find the rows that may be faulty; `Edit.faults` decides."""
    return {
        index
        for index, (prompt, target, subject) in enumerate(zip(prompts, targets, subjects, strict=True))
        if not (prompt and target and prompt.strip() and target.strip())
        or (subject is not None and not (subject in prompt and subject.strip()))
    }


def _lists_are_whole(columns: dict[str, pa.Array]) -> bool:
    """Test that every rephrasing is a text and every probe has a prompt and a target."""
    wordings = _values(columns.get("rephrasings"))
    if not all(wording and wording.strip() for wording in wordings):
        return False
    for name in ("locality", "portability"):
        probes = _flat(columns.get(name))
        if len(probes) and (probes.null_count or not all(_has_text(pc.struct_field(probes, p)) for p in ("prompt", "target"))):
            return False
    return True


def _has_text(strings: pa.Array) -> bool:
    return not strings.null_count and bool(pc.all(pc.not_equal(pc.utf8_trim_whitespace(strings), "")).as_py())


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


def _checked_row(batch: pa.RecordBatch, index: int) -> Edit | EditRejected:
    row = batch.slice(index, 1).to_pylist()[0]
    try:
        edit = plain.edit(row)
    except EditRejected as rejected:
        return rejected
    for fault in edit.faults():
        return EditRejected.of([fault])
    return edit


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
    ]
    return pa.record_batch([pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _plain(probes: Sequence[Probe]) -> list[dict[str, str]] | None:
    return [probe.to_json() for probe in probes] or None
