"""Edits read from files in order, without holding a file in memory, and written to Parquet; docs/data.md has the formats.

source (sources.py) -> records (records.py, or rows of Parquet) -> edits (formats/ and completion.py, or parquet.py for our own
schema)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from errata.datasets.advice import advised, unknown_format
from errata.datasets.completion import AbsentSubject, completed
from errata.datasets.formats.fields import LeftOut
from errata.datasets.formats.table import Format, format_named, recognised
from errata.datasets.lines import MAX_RECORD_BYTES, UNNAMED, Found
from errata.datasets.parquet import INDEX_COLUMN, SCHEMA, batch_of, check_schema, edits_of, rows_of, without_nulls
from errata.datasets.records import records_of
from errata.datasets.skip_report import SkipReport
from errata.datasets.sources import Source, hub_rows, is_hub_rows, sources_of
from errata.durable import replaced
from errata.edit import Code, Edit, EditRejected

OnFault = Literal["stop", "skip"]
NUM_DETECTED = 32  # the format of a file is that of the first recognised one among so many records
BATCH_ROWS = 8192
ROW_GROUP_ROWS = 16384

log = logging.getLogger("errata.datasets")


@dataclass(frozen=True)
class _Reading:
    """Options of reading a source, and the report of it."""

    known: Format | None
    absent_subject: AbsentSubject
    report: SkipReport
    max_bytes: int


def read_edits(
    source: str | PathLike[str],
    *,
    format_name: str = "",
    on_fault: OnFault = "stop",
    absent_subject: AbsentSubject = "refuse",
    skip_report: SkipReport | None = None,
    max_record_bytes: int = MAX_RECORD_BYTES,
    filesystem: pafs.FileSystem | None = None,
) -> Iterator[Edit]:
    """Iterate over the validated edits of a file, of several files, or of a dataset, as named in sources.py.

    The format is recognised by the content unless `format_name` gives it. A faulty record ends the reading with an
    `EditRejected` that names the record's number in its file, from 0, the field and the file. With `on_fault="skip"` the
    record is counted in `skip_report` instead, and the report is logged at the end. An optional field at fault (a probe, an
    empty rephrasing) is left out and counted there, whatever `on_fault` is; so is, with `absent_subject="drop"`, a subject
    that is not in its prompt. Damage after which nothing can be read (a compressed file, a Parquet file or a JSON list that
    breaks off, an open quote in CSV, an unknown format) always ends the reading. The call itself raises `FileNotFoundError`
    or `ValueError` for a source that is missing or misnamed.
    """
    if on_fault not in ("stop", "skip"):
        raise ValueError(f"on_fault is stop or skip, not {on_fault!r}")
    if absent_subject not in get_args(AbsentSubject):
        raise ValueError(f"absent_subject is refuse or drop, not {absent_subject!r}")
    known = format_named(format_name) if format_name else None
    skip_report = SkipReport() if skip_report is None else skip_report
    how = _Reading(known, absent_subject, skip_report, max_record_bytes)
    if is_hub_rows(source):
        rows = map(without_nulls, hub_rows(str(source)))
        return _kept(_converted(rows, str(source), how), on_fault, skip_report)
    files = sources_of(source, filesystem)
    return _kept(chain.from_iterable(_read(file, how) for file in files), on_fault, skip_report)


def write_parquet(edits: Iterable[Edit], path: str | Path) -> int:
    """Write edits to one Parquet file, a row group at a time; returns their number. The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pending, count = iter(edits), 0
    with replaced(path) as file, pq.ParquetWriter(file, SCHEMA) as writer:
        while group := list(islice(pending, ROW_GROUP_ROWS)):
            writer.write_batch(batch_of(group))
            count += len(group)
    return count


def _kept(found: Iterable[Edit | EditRejected], on_fault: OnFault, skip_report: SkipReport) -> Iterator[Edit]:
    for one in found:
        if isinstance(one, Edit):
            yield one
        elif on_fault == "stop":
            raise one
        else:
            skip_report.skip(one)
    if skip_report.skipped or skip_report.left_out:
        log.warning("%s", skip_report.report())


def _read(source: Source, how: _Reading) -> Iterator[Edit | EditRejected]:
    with source.filesystem.open_input_stream(source.path) as stream, _located_faults(source.name):
        is_parquet = stream.read(4) == b"PAR1"
    if is_parquet:
        yield from _read_parquet(source, how)
        return
    with source.filesystem.open_input_stream(source.path) as stream:
        with _located_faults(source.name):
            records = records_of(stream, how.max_bytes)
        yield from _converted(records, source.name, how)


@contextmanager
def _located_faults(name: str) -> Iterator[None]:
    """Turn errors of opening a file into an `EditRejected` that names the file."""
    try:
        yield
    except EditRejected as rejected:
        raise _located(rejected, None, name) from None
    except (pa.ArrowException, OSError) as damaged:
        raise _unreadable(damaged, 0, name) from damaged


def _unreadable(damaged: Exception, index: int, name: str) -> EditRejected:
    return EditRejected(f"the file cannot be read from here on: {damaged} ({name})", edit=index, code=Code.UNREADABLE_FILE)


def _read_parquet(source: Source, how: _Reading) -> Iterator[Edit | EditRejected]:
    try:
        file = pq.ParquetFile(source.filesystem.open_input_file(source.path))
    except (pa.ArrowException, OSError) as damaged:
        raise EditRejected(
            f"the Parquet file is damaged or not whole: {damaged} ({source.name})", code=Code.UNREADABLE_FILE
        ) from damaged
    with file:
        batches = _batches(file, source.name)
        first = next(batches, None)
        batches = chain(() if first is None else (first,), batches)
        if _is_plain(file.schema_arrow, first, how.known):
            yield from _plain_edits(file.schema_arrow, batches, source.name, how)
        else:
            yield from _converted(chain.from_iterable(map(rows_of, batches)), source.name, how)


def _is_plain(schema: pa.Schema, first: pa.RecordBatch | None, known: Format | None) -> bool:
    """Test whether the columns are those of our own schema, or nearly: then a wrong column is named for the whole file."""
    if known is not None:
        return known.name == "plain"
    if set(schema.names) <= set(SCHEMA.names):
        return True
    if "target" not in schema.names or first is None:
        return "target" in schema.names
    rows = (row for row in rows_of(first.slice(0, NUM_DETECTED)) if isinstance(row, dict))
    found = next((format_ for row in rows if (format_ := recognised(row)) is not None), None)
    return found is None or found.name == "plain"


def _plain_edits(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], name: str, how: _Reading
) -> Iterator[Edit | EditRejected]:
    names = [column for column in schema.names if not INDEX_COLUMN.fullmatch(column)]
    try:
        check_schema(schema, names)
    except EditRejected as rejected:
        raise _located(rejected, None, name) from None
    how.report.formats[name] = "plain"
    num_seen = 0
    left_out: LeftOut = []
    for batch in batches:
        for column in set(schema.names) - set(names):
            ignored = EditRejected(f"is pandas' index and no field ({name})", field=column, code=Code.UNKNOWN_FIELD)
            how.report.leave_out(ignored, len(batch))
        for index, found in enumerate(edits_of(batch.select(names), how.absent_subject, left_out), num_seen):
            if left_out:
                _report(left_out if isinstance(found, Edit) else [], index, name, how.report)
                left_out.clear()
            yield found if isinstance(found, Edit) else _located(found, index, name)
        num_seen += len(batch)


def _batches(file: pq.ParquetFile, name: str) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows. Raises `EditRejected` with the number of the first record of a batch that cannot be read."""
    batches, num_read = file.iter_batches(BATCH_ROWS), 0
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as damaged:
            raise EditRejected(
                f"the Parquet file is damaged from here on: {damaged} ({name})", edit=num_read, code=Code.UNREADABLE_FILE
            ) from damaged
        if batch is None:
            return
        num_read += len(batch)
        yield batch


def _converted(records: Iterable[Found], name: str, how: _Reading) -> Iterator[Edit | EditRejected]:
    """Convert records to edits. Without a known format, the first records decide it."""
    numbered = _numbered(records, name)
    ahead = list(islice(numbered, NUM_DETECTED))
    format_ = how.known or _detected([found for _, found in ahead], name)
    how.report.formats[name] = format_.name
    for index, record in chain(ahead, numbered):
        if isinstance(record, EditRejected):
            yield record
            continue
        left_out: LeftOut = []
        if UNNAMED in record:
            del record[UNNAMED]
            left_out.append(EditRejected("is ignored: pandas writes its index so", field="unnamed", code=Code.UNKNOWN_FIELD))
        try:
            edits = [completed(edit, how.absent_subject, left_out) for edit in format_.edits(record, left_out)]
        except EditRejected as rejected:
            yield _located(advised(rejected, record, format_), index, name)
            continue
        if left_out:
            _report(left_out, index, name, how.report)
        yield from edits


def _report(left_out: LeftOut, index: int, name: str, report: SkipReport) -> None:
    for fault in left_out:
        report.leave_out(_located(fault, index, name))


def _numbered(records: Iterable[Found], name: str) -> Iterator[tuple[int, Found]]:
    """Enumerate the records. Every fault, yielded or raised, names the record's number and the file."""
    num_seen = 0
    try:
        for found in records:
            yield num_seen, _located(found, num_seen, name) if isinstance(found, EditRejected) else found
            num_seen += 1
    except EditRejected as rejected:
        raise rejected if rejected.edit is not None else _located(rejected, num_seen, name) from None
    except (pa.ArrowException, OSError) as damaged:
        raise _unreadable(damaged, num_seen, name) from damaged


def _detected(ahead: list[Found], name: str) -> Format:
    """Return the format of a file's first records. Raises `EditRejected` if there is none or none is recognised."""
    if not ahead:
        raise EditRejected(f"the file holds no record ({name})", code=Code.EMPTY_FILE)
    records = [found for found in ahead if isinstance(found, dict)]
    for record in records:
        if (found := recognised(record)) is not None:
            return found
    faults = [found for found in ahead if isinstance(found, EditRejected)]
    raise (faults or [_located(unknown_format(next(iter(records), None)), 0, name)])[0]


def _located(rejected: EditRejected, index: int | None, name: str) -> EditRejected:
    return EditRejected(f"{rejected.reason} ({name})", edit=index, field=rejected.field, code=rejected.code)
