"""The body of a request, read and judged before anybody works on it.

JSON as it is taken here is stricter than Python's: UTF-8 alone, no name twice in an object, no NaN, no number beyond 64
bits, no half of a surrogate pair, no more nesting than a request needs. Each of these is harmless to the parser and breaks
something behind it: a table, a tokenizer, an answer that quotes it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from serving.api.asgi import Message, Receive, parts_of, values_of

_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json", re.ASCII | re.IGNORECASE)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Digits and exponents as they look: only numbers of these shapes can be out of range, and looking at each costs more than
# all the rest.
_SHAPES = bytes.maketrans(b"0123456789E", b"0000000000e")
_LARGE = (b"0" * 19, b"0e000", b"0e+000")
_INT_LIMIT = 2**63


class BadRequest(Exception):
    """What to answer: an HTTP code, why, the field or header that is at fault, and a header that says what would do."""

    def __init__(self, code: int, message: str, field: str, header: tuple[str, str] | None = None) -> None:
        super().__init__(code, message, field, header)
        self.code, self.message, self.field, self.header = code, message, field, header


async def read_body(scope: Message, receive: Receive, max_bytes: int) -> bytes:
    """Raises `BadRequest` as soon as the body is known to be too large, without reading on, and `Disconnected`."""
    too_large = BadRequest(413, f"the body is larger than {max_bytes:,} bytes; send it in parts", "body")
    for length in values_of(scope, b"content-length"):
        if not length.isascii() or not length.isdigit():
            raise BadRequest(400, "Content-Length must be a number", "Content-Length")
        if len(length) > 18 or int(length) > max_bytes:
            raise too_large
    body = bytearray()
    async for part in parts_of(receive):
        body += part
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def check_json_headers(scope: Message) -> None:
    """Raises `BadRequest` unless a body is announced as plain UTF-8 JSON.

    A missing type is refused too: only a type that is named as JSON keeps a page in somebody's browser from posting
    here unasked.
    """
    types, codings = values_of(scope, b"content-type"), values_of(scope, b"content-encoding")
    kind, *parameters = (part.strip() for part in types[0].split(";")) if len(types) == 1 else ("",)
    charsets = {p.partition("=")[2].strip('"').lower() for p in parameters if p.lower().startswith("charset=")}
    if not _JSON_TYPE.fullmatch(kind) or charsets - {"utf-8", "utf8"}:
        raise BadRequest(415, "the body must be JSON in UTF-8: send Content-Type: application/json", "Content-Type")
    if any(coding.strip().lower() != "identity" for coding in codings):
        raise BadRequest(415, "the body must be sent as it is, without a Content-Encoding", "Content-Encoding")


def parse_json(body: bytes, max_depth: int) -> Any:
    """Raises `BadRequest`."""
    try:
        text = body.decode("utf-8")
        shapes = body.translate(_SHAPES)
        is_large = any(shape in shapes for shape in _LARGE)
        numbers: dict[str, Any] = {"parse_int": _int, "parse_float": _float} if is_large else {}
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object_of_pairs, **numbers)
    except UnicodeDecodeError:
        raise BadRequest(400, "the body is not UTF-8", "body") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except _Unfit as fault:
        raise BadRequest(400, str(fault), "body") from None
    except ValueError as fault:
        raise BadRequest(400, f"the body is not JSON: {fault}", "body") from None
    if text.count("[") + text.count("{") > max_depth and _is_deeper(data, max_depth):
        raise _too_deep(max_depth)
    if _SURROGATE.search(text):
        _check_surrogates(data)
    return data


class _Unfit(ValueError):
    """JSON to the letter, but nothing that is taken here."""


def _too_deep(max_depth: int) -> BadRequest:
    return BadRequest(400, f"the body is nested more than {max_depth} deep", "body")


def _no_constant(name: str) -> Any:
    raise _Unfit(f"{name} is not a number in JSON")


def _int(digits: str) -> int:
    if len(digits) > 20 or not -_INT_LIMIT <= int(digits) < _INT_LIMIT:
        raise _Unfit(f"a number of {len(digits)} digits is beyond 64 bits")
    return int(digits)


def _float(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise _Unfit("a number is too large")
    return number


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Unfit("an object has the same name twice")
    return found


def _is_deeper(data: Any, max_depth: int) -> bool:
    level = [data]
    for _ in range(max_depth):
        level = [value for held in level for value in _values(held) if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _values(held: Any) -> Any:
    return held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()


def _check_surrogates(data: Any) -> None:
    """Pairs are a character by now; what is left of them can be written into no file and no answer."""
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadRequest(400, r"a text holds half of a surrogate pair, such as \ud800: it is no character", "body") from None
