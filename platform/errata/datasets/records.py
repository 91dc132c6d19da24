"""Records of a text file, one at a time: JSON lines, a JSON list, or CSV, recognised by the first characters.

A list may be inside an object, `{"data": [...]}`.

No more than `max_bytes` of a record are held, so a line of gigabytes is refused without being read into memory. A fault of one
record is yielded as an `EditRejected` if its neighbours can still be read (a line of JSON lines or of CSV). Damage that ends
the reading (a JSON list that breaks off, a CSV header, an open quote in CSV) is raised. Neither names the record's number,
which the caller counts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from errata.datasets.csv_records import csv_records
from errata.datasets.json_records import json_lines, json_list
from errata.datasets.lines import CHUNK_BYTES, MAX_RECORD_BYTES, Found
from errata.edit import Code, EditRejected

BOM = b"\xef\xbb\xbf"
# Lists of objects: those that wrap the records of a file, and those that are fields of one record.
WRAPPERS = frozenset("data dataset edits records rows items examples samples entries facts requests train test".split())
FIELDS = frozenset(
    "locality portability requested_rewrite output single_hops new_single_hops Relation_Specifity Logical_Generalization "
    "Subject_Aliasing Compositionality_I Compositionality_II Forgetfulness".split()
)
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
        before = _before_list(buffered.peek(CHUNK_BYTES).decode(errors="replace"))
        return json_list(buffered, max_bytes, before) if before else json_lines(buffered, max_bytes)
    if not start and not buffered.peek(1):
        raise EditRejected("the file is empty", code=Code.EMPTY_FILE)
    return csv_records(buffered, max_bytes)


def _before_list(text: str) -> str:
    """Return the text before the list of records if a file is one object around it; else an empty text.

    The list is the first member that is one; members before it are passed, pandas' schema, for example. A list of another
    name than in `WRAPPERS` is taken if the first line is not a record of more than that list.
    """
    decoder, at = json.JSONDecoder(), _next(text, text.index("{") + 1)
    try:
        while text.startswith('"', at):
            name, at = decoder.raw_decode(text, at)
            at = _next(text, at)
            if not text.startswith(":", at):
                return ""
            at = _next(text, at + 1)
            if text.startswith("[", at):
                wraps = name in WRAPPERS or (name not in FIELDS and not _is_record(text))
                return text[:at] if wraps and text[_next(text, at + 1)] in "{]" else ""
            at = _next(text, decoder.raw_decode(text, at)[1])
            if not text.startswith(",", at):
                return ""
            at = _next(text, at + 1)
    except (ValueError, IndexError, RecursionError):
        pass
    return ""


def _next(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _is_record(text: str) -> bool:
    """Test whether the first line is a whole object of several members, as in JSON lines."""
    try:
        found = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and len(found) > 1
