"""Lines of a UTF-8 text file, of bounded length."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from errata.edit import Code, EditRejected

MAX_RECORD_BYTES = 16 * 2**20
CHUNK_BYTES = 2**18

Found = dict[str, Any] | EditRejected  # a record, or what is wrong with it
UNNAMED = ""  # key of a leading column without a name in a record of CSV


def lines_of(stream: io.BufferedReader, max_bytes: int) -> Iterator[str | EditRejected]:
    """Yield each line with its line end, or a fault in its place. A line longer than `max_bytes` is skipped, not held."""
    while line := stream.readline(max_bytes + 1):
        if len(line) > max_bytes:
            while not line.endswith(b"\n") and (line := stream.readline(CHUNK_BYTES)):
                pass
            yield EditRejected(f"the line is longer than {max_bytes:,} bytes", code=Code.TOO_LONG)
        else:
            yield _decoded(line)


def _decoded(line: bytes) -> str | EditRejected:
    try:
        return line.decode()
    except UnicodeDecodeError as wrong:
        where = f"byte {wrong.object[wrong.start]:#04x} at byte {wrong.start} of the line"
        return EditRejected(f"is not UTF-8 text: {where}", code=Code.NOT_TEXT)
