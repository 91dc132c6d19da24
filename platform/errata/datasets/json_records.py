"""Records of a JSON file: one object a line (JSON lines), or one list of objects that is parsed as it is read.

The list is parsed with `json.JSONDecoder` over a growing window, not with `ijson`, which would weaken two promises:
`ijson` 3.6 replaces half of a surrogate pair by a question mark instead of refusing it, and a file of 100 KB of opening
brackets makes it allocate 23 GB.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

from errata.datasets.formats.fields import kind_of
from errata.datasets.lines import CHUNK_BYTES, Found, lines_of
from errata.datasets.written_numbers import WrittenNumber, integer
from errata.edit import Code, EditRejected


class _RepeatedKeys:
    """An `object_pairs_hook` that remembers a key that an object has twice; Python would silently take the last value."""

    repeated: str | None = None

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated = next(name for name in names if names.count(name) > 1)
        return found


def _decoder(keys: _RepeatedKeys) -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=keys, parse_int=integer, parse_float=WrittenNumber)


def json_lines(stream: io.BufferedReader, max_bytes: int) -> Iterator[Found]:
    """Yield the object of each line that is not empty. A faulty line does not affect its neighbours."""
    keys = _RepeatedKeys()
    decoder = _decoder(keys)
    for line in lines_of(stream, max_bytes):
        if isinstance(line, EditRejected):
            yield line
        elif line.strip():
            keys.repeated = None
            try:
                found = decoder.decode(line)
            except (ValueError, RecursionError) as wrong:
                reason = f"the line is not one whole JSON object: {wrong}; write each record on one line, or one list of all"
                yield EditRejected(reason, code=Code.UNREADABLE_RECORD)
            else:
                yield _checked(found, line, keys)


def json_list(stream: io.BufferedReader, max_bytes: int, start: str = "") -> Iterator[Found]:
    """Yield the elements of a list of objects, each as soon as it is complete. `start` is the file's text before the list.

    Raises `EditRejected` at damage after which no element can be found: a missing comma, bytes that are not UTF-8, an element
    longer than `max_bytes`, no closing bracket, text after the list. After a list in an object, `{"data": [...], "n": 3}`,
    further members may follow, but no second list.
    """
    window, keys = _Window(stream, max_bytes), _RepeatedKeys()
    decoder = _decoder(keys)
    while len(window.text) < len(start):
        window.more()
    window.at = len(start)
    window.next()
    window.at += 1  # the bracket
    if window.next() != "]":
        while True:
            yield _element(window, decoder, keys)
            after = window.next()
            window.at += 1
            if after == "]":
                break
            if after != ",":
                raise _broken(f"{after!r} follows it instead of a comma" if after else "the list has no end")
            window.next()
    else:
        window.at += 1
    if start:
        _rest_of_object(window, decoder)
    if left := window.next():
        raise _broken(f"{left!r} follows the list")


def _rest_of_object(window: _Window, decoder: json.JSONDecoder) -> None:
    """Pass the members after the list up to the closing brace of the object that the list is in."""
    while (after := window.next()) == ",":
        window.at += 1
        name = _value(window, decoder) if window.next() == '"' else None
        if name is None or window.next() != ":":
            raise _broken("no member of the object follows the comma")
        window.at += 1
        window.next()
        if isinstance(_value(window, decoder), list):
            raise _broken(f"another list, {name!r}, follows the list of records; write one list a file")
    if after != "}":
        raise _broken(f"{after!r} follows the list instead of a closing brace" if after else "the object has no end")
    window.at += 1


class _Window:
    """The text of a UTF-8 stream from position `at` to what has been read so far."""

    def __init__(self, stream: io.BufferedReader, max_bytes: int) -> None:
        self._stream, self._max = stream, max_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._damage: EditRejected | None = None
        self.text, self.at, self.is_at_end = "", 0, False
        self.last = ""  # text of the value that was parsed last

    def more(self) -> None:
        """Read on. Raises `EditRejected` if the record that begins at `at` is too long, or not UTF-8."""
        if self._damage:
            raise self._damage
        held = len(self.text) - self.at
        if held > self._max:
            raise EditRejected(
                f"the record is longer than {self._max:,} characters, or its JSON is damaged", code=Code.TOO_LONG
            )
        chunk = self._stream.read(max(CHUNK_BYTES, held))  # doubles the window, so that a long record is rarely parsed again
        try:
            read = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as wrong:  # the text before the byte is still read
            read = wrong.object[: wrong.start].decode()
            self._damage = EditRejected(f"is not UTF-8 text: byte {wrong.object[wrong.start]:#04x}", code=Code.NOT_TEXT)
        self.is_at_end = not chunk and not self._damage
        self.text, self.at = self.text[self.at :] + read, 0

    def next(self) -> str:
        """Move to the next character that is not white space and return it; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text) or self.is_at_end:
                return self.text[self.at : self.at + 1]
            self.more()


def _element(window: _Window, decoder: json.JSONDecoder, keys: _RepeatedKeys) -> Found:
    """Parse the record at the window's position."""
    found = _value(window, decoder, keys)
    return _checked(found, window.last, keys)


def _value(window: _Window, decoder: json.JSONDecoder, keys: _RepeatedKeys | None = None) -> Any:
    """Parse the value at the window's position. It is complete if a character follows, because a number might continue."""
    while True:
        if keys is not None:
            keys.repeated = None
        try:
            found, end = decoder.raw_decode(window.text, window.at)
        except (ValueError, RecursionError) as wrong:
            if window.is_at_end:
                raise _broken(str(wrong)) from None
        else:
            if end < len(window.text) or window.is_at_end:
                window.last, window.at = window.text[window.at : end], end
                return found
        window.more()


def _broken(why: str) -> EditRejected:
    message = f"the JSON list is damaged or breaks off here: {why}; nothing after it can be read"
    return EditRejected(message, code=Code.UNREADABLE_FILE)


def _checked(found: Any, text: str, keys: _RepeatedKeys) -> Found:
    """Return the object that was parsed from `text`, or its fault."""
    if not isinstance(found, dict):
        return EditRejected(f"is not a JSON object but {kind_of(found)}", code=Code.UNREADABLE_RECORD)
    if keys.repeated is not None:
        return EditRejected(f"an object in it has the key {keys.repeated!r} more than once", code=Code.UNREADABLE_RECORD)
    if "\\ud" in text or "\\uD" in text:  # an escape in JSON can spell half of a surrogate pair, which cannot be encoded
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            reason = "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            return EditRejected(reason, code=Code.NOT_TEXT)
    return found
