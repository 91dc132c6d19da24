"""Edits from files, in order, without holding a file in memory, and into Parquet; docs/data.md has formats, sources and
schema.

source (sources.py) -> records (records.py, or rows of Parquet) -> edits (formats/, or columns.py for our own Parquet)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from errata.datasets.formats.table import Format, detect, format_named
from errata.datasets.parquet import SCHEMA, batch_of, check_schema, edits_of, rows_of, without_nulls
from errata.datasets.records import MAX_RECORD_BYTES, Found, records_of
from errata.datasets.skip_report import SkipReport
from errata.datasets.sources import Source, hub_rows, is_hub_rows, sources_of
from errata.durable import replaced
from errata.edit import Code, Edit, EditRejected

OnFault = Literal["stop", "skip"]
NUM_LOOKED_AT = 32  # records among which the first that is recognised settles the format of a file
BATCH_ROWS = 8192
ROW_GROUP_ROWS = 16384

log = logging.getLogger("errata.datasets")


def read_edits(
    source: str | PathLike[str],
    *,
    format_name: str = "",
    on_fault: OnFault = "stop",
    intake: SkipReport | None = None,
    max_record_bytes: int = MAX_RECORD_BYTES,
    filesystem: pafs.FileSystem | None = None,
) -> Iterator[Edit]:
    """Edits of a file, of several, or of a dataset (`sources.py` says how they are named), in order, each validated.

    The format is seen from the content unless `format_name` gives it. A record at fault ends the reading with an
    `EditRejected` that names the record's number in its file, from 0, the field and the file; with `on_fault="skip"` it is
    counted in `intake`, and a report is logged at the end. Damage after which nothing can be read (a packed or Parquet file
    or a JSON list that breaks off, a quote in CSV that stays open, an unknown format) always ends it. Raises
    `FileNotFoundError` or `ValueError` at once for a source that is not there or not named rightly.
    """
    if on_fault not in ("stop", "skip"):
        raise ValueError(f"a fault makes the reading stop or skip, not {on_fault!r}")
    known = format_named(format_name) if format_name else None
    intake = SkipReport() if intake is None else intake
    if is_hub_rows(source):
        rows = map(without_nulls, hub_rows(str(source)))
        return _kept(_converted(rows, str(source), known, intake), on_fault, intake)
    files = sources_of(source, filesystem)
    return _kept(chain.from_iterable(_read(file, known, intake, max_record_bytes) for file in files), on_fault, intake)


def write_parquet(edits: Iterable[Edit], path: str | Path) -> int:
    """Write edits as one Parquet file and return how many; the file appears whole or not at all, and few are held at a time."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pending, count = iter(edits), 0
    with replaced(path) as file, pq.ParquetWriter(file, SCHEMA) as writer:
        while group := list(islice(pending, ROW_GROUP_ROWS)):
            writer.write_batch(batch_of(group))
            count += len(group)
    return count


def _kept(found: Iterable[Edit | EditRejected], on_fault: OnFault, intake: SkipReport) -> Iterator[Edit]:
    for one in found:
        if isinstance(one, Edit):
            yield one
        elif on_fault == "stop":
            raise one
        else:
            intake.skip(one)
    if intake.skipped:
        log.warning("%s", intake.report())


def _read(source: Source, known: Format | None, intake: SkipReport, max_bytes: int) -> Iterator[Edit | EditRejected]:
    with source.filesystem.open_input_stream(source.path) as stream, _told_of(source.name):
        is_parquet = stream.read(4) == b"PAR1"
    if is_parquet:
        yield from _read_parquet(source, known, intake)
        return
    with source.filesystem.open_input_stream(source.path) as stream:
        with _told_of(source.name):
            records = records_of(stream, max_bytes)
        yield from _converted(records, source.name, known, intake)


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """What is wrong with the bytes is an `EditRejected` that says which file, and record 0 as it begins."""
    try:
        yield
    except EditRejected as rejected:
        raise _located(rejected, None, name) from None
    except (pa.ArrowException, OSError) as damaged:
        raise _unreadable(damaged, 0, name) from damaged


def _unreadable(damaged: Exception, index: int, name: str) -> EditRejected:
    return EditRejected(f"the file cannot be read from here on: {damaged} ({name})", edit=index, code=Code.UNREADABLE_FILE)


def _read_parquet(source: Source, known: Format | None, intake: SkipReport) -> Iterator[Edit | EditRejected]:
    try:
        file = pq.ParquetFile(source.filesystem.open_input_file(source.path))
    except (pa.ArrowException, OSError) as damaged:
        raise EditRejected(
            f"the Parquet file is damaged or not whole: {damaged} ({source.name})", code=Code.UNREADABLE_FILE
        ) from damaged
    with file:
        names = set(file.schema_arrow.names)
        is_plain = known.name == "plain" if known else "target" in names or names <= set(SCHEMA.names)
        if not is_plain:
            rows = chain.from_iterable(map(rows_of, _batches(file, source.name)))
            yield from _converted(rows, source.name, known, intake)
            return
        try:
            check_schema(file.schema_arrow)
        except EditRejected as rejected:
            raise _located(rejected, None, source.name) from None
        intake.formats[source.name] = "plain"
        num_seen = 0
        for batch in _batches(file, source.name):
            for index, found in enumerate(edits_of(batch), num_seen):
                yield found if isinstance(found, Edit) else _located(found, index, source.name)
            num_seen += len(batch)


def _batches(file: pq.ParquetFile, name: str) -> Iterator[pa.RecordBatch]:
    """Raises `EditRejected` with the number of the first record of a batch that cannot be read."""
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


def _converted(records: Iterable[Found], name: str, known: Format | None, intake: SkipReport) -> Iterator[Edit | EditRejected]:
    """Edits of records, whose format, unless it is known, is that of the first few."""
    numbered = _numbered(records, name)
    ahead = list(islice(numbered, NUM_LOOKED_AT))
    format_ = known or _detected([found for _, found in ahead], name)
    intake.formats[name] = format_.name
    for index, record in chain(ahead, numbered):
        if isinstance(record, EditRejected):
            yield record
            continue
        try:
            edits = format_.edits(record)
        except EditRejected as rejected:
            yield _located(rejected, index, name)
            continue
        fault = next((fault for edit in edits for fault in edit.faults()), None)
        if fault is not None:
            yield _located(EditRejected.of([fault]), index, name)
        else:
            yield from edits


def _numbered(records: Iterable[Found], name: str) -> Iterator[tuple[int, Found]]:
    """Records with their numbers; what is wrong with one, yielded or raised, says its number and its file."""
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
    if not ahead:
        raise EditRejected(f"the file holds no record ({name})", code=Code.EMPTY_FILE)
    faults = [found for found in ahead if isinstance(found, EditRejected)]
    try:
        return detect(found for found in ahead if isinstance(found, dict))
    except EditRejected as unknown:
        raise (faults or [_located(unknown, 0, name)])[0] from None


def _located(rejected: EditRejected, index: int | None, name: str) -> EditRejected:
    return EditRejected(f"{rejected.reason} ({name})", edit=index, field=rejected.field, code=rejected.code)
