"""Server-sent events out of the bytes of an answer: the lines `event:`, `data:` and comments of the HTML standard's grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# Not str.splitlines: that also breaks at characters such as U+2028, which JSON may hold as they are. A carriage return at the
# end of what has come may be the first half of a line's end.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, without their ends, of bytes that may be cut anywhere; a last line without an end is dropped."""
    rest = b""
    for chunk in chunks:
        *whole, rest = _LINE_END.split(rest + chunk)
        yield from (line.decode("utf-8", errors="replace") for line in whole)


def events_of(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Events in order; an unfinished one at the end is dropped, and so is one without data. Raises `ValueError` for data that
    is not JSON."""
    name, data = "message", list[str]()
    for line in lines_of(chunks):
        if not line:
            if data:
                yield Event(name, json.loads("\n".join(data)))
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)


@dataclass(frozen=True)
class Event:
    """A server-sent event: `data` is its JSON."""

    name: str
    data: Any
