"""Records of a CSV file with a header; cells of list fields hold JSON. Tabs or semicolons may separate the cells (TSV).

Rows are read with the standard library's `csv` over bounded lines, not with `pyarrow.csv.open_csv`, which would weaken three
promises: it takes a quote that is never closed, with the hundred records up to the next quote, as one good row; it accepts
`"x" y` as a cell; and one byte that is not UTF-8 turns a whole column into bytes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from errata.datasets.csv_lines import CELLS, RowLines
from errata.datasets.lines import CHUNK_BYTES, UNNAMED, Found, lines_of
from errata.edit import Code, EditRejected

LIST_FIELDS = ("rephrasings", "locality", "portability", "messages")
INDEX_NAME = re.compile(r"(Unnamed: [\d.]+)?")  # of the columns in which pandas writes its index


def csv_records(stream: io.BufferedReader, max_bytes: int) -> Iterator[Found]:
    """Yield a record for each row, or one fault for a row with faulty lines.

    Raises `EditRejected` for a wrong header and for a quote that is left open.
    """
    separator = _separator(stream)
    lines = RowLines(lines_of(stream, max_bytes), separator)
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))  # the default is 128 KiB
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header = _header(reader, lines)
    while True:
        lines.of_row.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as wrong:
            if lines.is_at_end:
                raise lines.left_open("has no end in the file") from None
            if len(lines.of_row) > 1:  # there may be good records between the quote and this line
                raise lines.left_open(f"is not closed as CSV does it in line {lines.num_read:,} ({wrong})") from None
            row = []
            lines.faults.append(EditRejected(f"the row is not CSV: {wrong}", code=Code.UNREADABLE_RECORD))
        if lines.faults:
            yield lines.faults[0]
            lines.faults.clear()
        elif row:
            yield _record(header, row)


def _separator(stream: io.BufferedReader) -> str:
    """Tabs or semicolons if the header has them and no comma, as in TSV and in what some spreadsheets write; else a comma."""
    line = stream.peek(CHUNK_BYTES).lstrip(b"\r\n ").partition(b"\n")[0].decode(errors="replace")
    return "," if "," in line else max(CELLS, key=line.count)


def _header(reader: Any, lines: RowLines) -> list[str]:
    """Column names from the first line that is not empty. Raises `EditRejected` if they are not those of a CSV file."""
    header: list[str] = []
    try:
        while not header and not lines.is_at_end:
            lines.of_row.clear()
            header = [name.strip() for name in next(reader, [])]
    except csv.Error as wrong:
        raise EditRejected(f"the header is not CSV: {wrong}", code=Code.UNREADABLE_FILE) from None
    if lines.faults:
        raise lines.faults[0]
    if header == [""]:
        raise EditRejected("the file holds no record", code=Code.EMPTY_FILE)
    if len(header) == 1:
        raise EditRejected(
            "is no file of edits: neither Parquet, JSON lines, a JSON list, nor CSV with a header of two columns or more",
            code=Code.UNKNOWN_FORMAT,
        )
    num_indexes = next((number for number, name in enumerate(header) if not INDEX_NAME.fullmatch(name)), 0)
    header = [UNNAMED] * num_indexes + header[num_indexes:]
    named = header[num_indexes:]
    if not all(named) or len(set(named)) < len(named):
        raise EditRejected(
            f"the CSV header must name every column, each once: {', '.join(header)[:200]}; only a first column, pandas' index, "
            "may have no name",
            code=Code.UNREADABLE_FILE,
        )
    return header


def _record(header: list[str], row: list[str]) -> Found:
    """Map a row's cells to columns. Empty cells are left out, except prompt and target, which must not be missing."""
    if len(row) != len(header):
        return EditRejected(f"has {len(row)} cells where the header has {len(header)}", code=Code.UNREADABLE_RECORD)
    record: dict[str, Any] = {
        name: cell for name, cell in zip(header, row, strict=True) if cell or name in ("prompt", "target")
    }
    for name in LIST_FIELDS:
        if name in record:
            try:
                record[name] = json.loads(record[name])
            except (ValueError, RecursionError) as wrong:
                return EditRejected(f"the cell is not a JSON list: {wrong}", field=name, code=Code.WRONG_TYPE)
    return record
