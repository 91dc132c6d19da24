"""Records of a text file, one at a time: JSON lines, a JSON list, or CSV, recognised by the first characters.

No more than `max_bytes` of a record are held, so a line of gigabytes is refused without being read into memory. A fault of one
record is yielded as an `EditRejected` if its neighbours can still be read (a line of JSON lines or of CSV). Damage that ends
the reading (a JSON list that breaks off, a CSV header, an open quote in CSV) is raised. Neither names the record's number,
which the caller counts.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from errata.datasets.csv_records import csv_records
from errata.datasets.json_records import json_lines, json_list
from errata.datasets.lines import CHUNK_BYTES, MAX_RECORD_BYTES, Found
from errata.edit import Code, EditRejected

BOM = b"\xef\xbb\xbf"
OTHER_ENCODINGS = {  # first bytes of a file that is not UTF-8 text
    b"\xff\xfe": "is UTF-16, not UTF-8 text; convert it (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "is UTF-16, not UTF-8 text; convert it (iconv -f UTF-16 -t UTF-8)",
    b"\x1f\x8b": "is packed by gzip, and its name does not say so; let the name end in .gz, or unpack it",
}


def records_of(stream: Any, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Found]:
    """Read the records of a binary stream (a file, or pyarrow's) in order, each or its fault.

    Raises `EditRejected` if reading cannot continue.
    """
    buffered: io.BufferedReader = io.BufferedReader(stream, CHUNK_BYTES)
    if buffered.peek(CHUNK_BYTES).startswith(BOM):
        buffered.read(len(BOM))
    start = buffered.peek(CHUNK_BYTES).lstrip()[:1]
    for first_bytes, reason in OTHER_ENCODINGS.items():
        if buffered.peek(CHUNK_BYTES).startswith(first_bytes):
            raise EditRejected(reason, code=Code.UNKNOWN_FORMAT)
    if start == b"[":
        return json_list(buffered, max_bytes)
    if start == b"{":
        return json_lines(buffered, max_bytes)
    if not start and not buffered.peek(1):
        raise EditRejected("the file is empty", code=Code.EMPTY_FILE)
    return csv_records(buffered, max_bytes)
