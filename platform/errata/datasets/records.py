"""Records of a text file one at a time: JSON lines, a JSON list, CSV. What it is shows in its first characters, not in its
name.

Nothing longer than `max_bytes` is held, so a line of gigabytes is refused and not read into memory. A record at fault is
yielded as an `EditRejected` where its neighbours can still be read (a line of JSON lines or of CSV); damage that ends the
reading (a JSON list that breaks off, a CSV header, a quote in CSV that stays open) is raised. Either says where the file is
wrong, not which record it is: the caller counts.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from errata.datasets.csv_lines import RowLines
from errata.edit import Code, EditRejected

MAX_RECORD_BYTES = 16 * 2**20
CHUNK_BYTES = 2**18
BOM = b"\xef\xbb\xbf"
OTHERS = {  # what a file begins with that is no UTF-8 text
    b"\xff\xfe": "is UTF-16, not UTF-8 text; convert it (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "is UTF-16, not UTF-8 text; convert it (iconv -f UTF-16 -t UTF-8)",
    b"\x1f\x8b": "is packed by gzip, and its name does not say so; let the name end in .gz, or unpack it",
}
LISTS = ("rephrasings", "locality", "portability")  # what a cell of CSV holds as a JSON list

Found = dict[str, Any] | EditRejected


def records_of(stream: Any, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Found]:
    """Records of a binary stream (a file, or pyarrow's) in their order, or what is wrong with one.

    Raises `EditRejected` if it cannot go on.
    """
    buffered: io.BufferedReader = io.BufferedReader(stream, CHUNK_BYTES)
    if buffered.peek(CHUNK_BYTES).startswith(BOM):
        buffered.read(len(BOM))
    start = buffered.peek(CHUNK_BYTES).lstrip()[:1]
    for magic, other in OTHERS.items():
        if buffered.peek(CHUNK_BYTES).startswith(magic):
            raise EditRejected(other, code=Code.UNKNOWN_FORMAT)
    if start == b"[":
        return _json_list(buffered, max_bytes)
    if start == b"{":
        return _json_lines(buffered, max_bytes)
    if not start and not buffered.peek(1):
        raise EditRejected("the file is empty", code=Code.EMPTY_FILE)
    return _csv_rows(buffered, max_bytes)


def _lines(stream: io.BufferedReader, max_bytes: int) -> Iterator[str | EditRejected]:
    """Lines, each with its end."""
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
        return EditRejected(
            f"is not UTF-8 text: byte {wrong.object[wrong.start]:#04x} at byte {wrong.start} of the line", code=Code.NOT_TEXT
        )


def _json_lines(stream: io.BufferedReader, max_bytes: int) -> Iterator[Found]:
    keys = _Keys()
    decoder = json.JSONDecoder(object_pairs_hook=keys)
    for line in _lines(stream, max_bytes):
        if isinstance(line, EditRejected):
            yield line
        elif line.strip():
            keys.repeated = None
            try:
                found = decoder.decode(line)
            except (ValueError, RecursionError) as wrong:
                yield EditRejected(f"the line is not one whole JSON object: {wrong}", code=Code.UNREADABLE_RECORD)
            else:
                yield _checked(found, line, keys)


class _Keys:
    """A hook of JSON's decoder that keeps which key an object has twice: Python would take the last and say nothing."""

    repeated: str | None = None

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated = next(name for name in names if names.count(name) > 1)
        return found


def _checked(found: Any, text: str, keys: _Keys) -> Found:
    if not isinstance(found, dict):
        return EditRejected(f"is not a JSON object but {type(found).__name__}", code=Code.UNREADABLE_RECORD)
    if keys.repeated is not None:
        return EditRejected(f"an object in it has the key {keys.repeated!r} more than once", code=Code.UNREADABLE_RECORD)
    if "\\ud" in text or "\\uD" in text:  # JSON can spell half of a surrogate pair, which is no text that can be written
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return EditRejected(
                "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character", code=Code.NOT_TEXT
            )
    return found


class _Characters:
    """The text of a stream of UTF-8 from `at` on, as far as it was needed."""

    def __init__(self, stream: io.BufferedReader, max_bytes: int) -> None:
        self._stream, self._max = stream, max_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._damage: EditRejected | None = None
        self.text, self.at, self.is_at_end = "", 0, False

    def more(self) -> None:
        """Read on. Raises `EditRejected` if the record that begins at `at` is too long, or not UTF-8."""
        if self._damage:
            raise self._damage
        held = len(self.text) - self.at
        if held > self._max:
            raise EditRejected(
                f"the record is longer than {self._max:,} characters, or its JSON is damaged", code=Code.TOO_LONG
            )
        chunk = self._stream.read(max(CHUNK_BYTES, held))  # as much again, so that a long record is not parsed too often
        try:
            read = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as wrong:  # what stands before it can still be read
            read = wrong.object[: wrong.start].decode()
            self._damage = EditRejected(f"is not UTF-8 text: byte {wrong.object[wrong.start]:#04x}", code=Code.NOT_TEXT)
        self.is_at_end = not chunk and not self._damage
        self.text, self.at = self.text[self.at :] + read, 0

    def next(self) -> str:
        """The next character that is not white space, not taken yet; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text) or self.is_at_end:
                return self.text[self.at : self.at + 1]
            self.more()


def _json_list(stream: io.BufferedReader, max_bytes: int) -> Iterator[Found]:
    characters, keys = _Characters(stream, max_bytes), _Keys()
    decoder = json.JSONDecoder(object_pairs_hook=keys)
    characters.next()
    characters.at += 1  # the bracket
    if characters.next() != "]":
        while True:
            yield _element(characters, decoder, keys)
            after = characters.next()
            characters.at += 1
            if after == "]":
                break
            if after != ",":
                raise EditRejected(
                    _broken(f"{after!r} stands after it, not a comma" if after else "the list has no end"),
                    code=Code.UNREADABLE_FILE,
                )
            characters.next()
    else:
        characters.at += 1
    if left := characters.next():
        raise EditRejected(_broken(f"{left!r} stands after the list"), code=Code.UNREADABLE_FILE)


def _element(characters: _Characters, decoder: json.JSONDecoder, keys: _Keys) -> Found:
    """The value at the next character. It is whole when it is followed by something: a number might go on."""
    while True:
        keys.repeated = None
        try:
            found, end = decoder.raw_decode(characters.text, characters.at)
        except (ValueError, RecursionError) as wrong:
            if characters.is_at_end:
                raise EditRejected(_broken(str(wrong)), code=Code.UNREADABLE_FILE) from None
        else:
            if end < len(characters.text) or characters.is_at_end:
                text = characters.text[characters.at : end]
                characters.at = end
                return _checked(found, text, keys)
        characters.more()


def _broken(why: str) -> str:
    return f"the JSON list is damaged or breaks off here: {why}; nothing after it can be read"


def _csv_rows(stream: io.BufferedReader, max_bytes: int) -> Iterator[Found]:
    """A faulty line stays out of the row and is told before it."""
    lines = RowLines(_lines(stream, max_bytes))
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))  # its own is 128 KiB
    reader = csv.reader(lines, strict=True)
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
            if len(lines.of_row) > 1:  # good records may stand between the quote and here
                raise lines.left_open(f"is not closed as CSV does it in line {lines.num_read:,} ({wrong})") from None
            row = []
            lines.faults.append(EditRejected(f"the row is not CSV: {wrong}", code=Code.UNREADABLE_RECORD))
        if lines.faults:
            yield lines.faults[0]  # a row over several lines is at fault once
            lines.faults.clear()
        elif row:
            yield _row(header, row)


def _header(reader: Any, lines: RowLines) -> list[str]:
    header: list[str] = []
    try:
        while not header and not lines.is_at_end:  # empty lines may stand before it
            lines.of_row.clear()
            header = [name.strip() for name in next(reader, [])]
    except csv.Error as wrong:
        _check_separator(lines)
        raise EditRejected(f"the header is not CSV: {wrong}", code=Code.UNREADABLE_FILE) from None
    if lines.faults:
        raise lines.faults[0]
    if header == [""]:
        raise EditRejected("the file holds no record", code=Code.EMPTY_FILE)
    if len(header) == 1:
        _check_separator(lines)
        raise EditRejected(
            "is no file of edits: neither Parquet, JSON lines, a JSON list, nor CSV with a header of two columns or more",
            code=Code.UNKNOWN_FORMAT,
        )
    if not all(header) or len(set(header)) < len(header):
        raise EditRejected(
            f"the CSV header must name every column, each once: {', '.join(header)[:200]}", code=Code.UNREADABLE_FILE
        )
    return header


def _check_separator(lines: RowLines) -> None:
    line = "".join(lines.of_row[-1:])
    for separator, name in {";": ";", "\t": "tabs"}.items():
        if separator in line and "," not in line:
            raise EditRejected(f"cells are separated by commas; this header has {name}", code=Code.UNKNOWN_FORMAT)


def _row(header: list[str], row: list[str]) -> Found:
    """Empty cells are fields that are not given, but for prompt and target, which would be missing by mistake."""
    if len(row) != len(header):
        return EditRejected(f"has {len(row)} cells where the header has {len(header)}", code=Code.UNREADABLE_RECORD)
    record: dict[str, Any] = {
        name: cell for name, cell in zip(header, row, strict=True) if cell or name in ("prompt", "target")
    }
    for name in LISTS:
        if name in record:
            try:
                record[name] = json.loads(record[name])
            except (ValueError, RecursionError) as wrong:
                return EditRejected(f"the cell is not a JSON list: {wrong}", field=name, code=Code.WRONG_TYPE)
    return record
