"""The body of a request: size, headers and JSON are checked before the application sees it.

JSON is accepted more strictly than by Python's parser: UTF-8 only, no NaN, no number beyond 64 bits, no lone surrogate, and no
more nesting than a request needs. Each of these is harmless to a parser and breaks something behind it: a table, a tokenizer,
an answer that quotes it. If a name occurs twice in an object, the last value counts, for every parser that follows too.
"""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

from pydantic_core import from_json

from serving.api.asgi import ErrorAnswer, Message, Receive, parts_of, values_of
from serving.api.codes import RequestCode

_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json", re.ASCII | re.IGNORECASE)
_INT_LIMIT = 2**63


class BadRequest(Exception):
    """A request that the middleware refuses; `refusal` is the answer."""

    def __init__(
        self, status: int, code: RequestCode, message: str, field: str | None, header: tuple[str, str] | None = None
    ) -> None:
        super().__init__(status, code, message, field, header)
        self.refusal = ErrorAnswer(status, code, message, field, header)


async def read_body(scope: Message, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """Read the body. Raises `Disconnected`, and `BadRequest` as soon as it is known to be too large, or late."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _whole_body(scope, receive, max_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {timeout_s:g} s (body_timeout_s={timeout_s:g}); send it without pauses"
        raise BadRequest(408, RequestCode.REQUEST_TIMEOUT, message, "body", ("Connection", "close")) from None


async def _whole_body(scope: Message, receive: Receive, max_bytes: int) -> bytes:
    message = f"the body is larger than {max_bytes:,} bytes (max_body_bytes={max_bytes}); send it in parts"
    too_large = BadRequest(413, RequestCode.TOO_LARGE, message, "body")
    for length in values_of(scope, b"content-length"):
        if not length.isascii() or not length.isdigit():
            raise BadRequest(400, RequestCode.INVALID_HEADER, "Content-Length must be a number", "Content-Length")
        if len(length) > 18 or int(length) > max_bytes:
            raise too_large
    body = bytearray()
    async for part in parts_of(receive):
        body += part
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def check_json_headers(scope: Message) -> None:
    """Raise `BadRequest` unless the headers announce plain UTF-8 JSON.

    A missing type is refused too: a page in a browser can post to this machine without a preflight request, unless the type
    must be JSON.
    """
    types, codings = values_of(scope, b"content-type"), values_of(scope, b"content-encoding")
    kind, *parameters = (part.strip() for part in types[0].split(";")) if len(types) == 1 else ("",)
    charsets = {p.partition("=")[2].strip('"').lower() for p in parameters if p.lower().startswith("charset=")}
    if not _JSON_TYPE.fullmatch(kind) or charsets - {"utf-8", "utf8"}:
        message = "the body must be JSON in UTF-8: send Content-Type: application/json"
        raise BadRequest(415, RequestCode.UNSUPPORTED_TYPE, message, "Content-Type")
    if any(coding.strip().lower() != "identity" for coding in codings):
        message = "the body must be sent without a Content-Encoding"
        raise BadRequest(415, RequestCode.UNSUPPORTED_TYPE, message, "Content-Encoding")


def parse_json(body: bytes, max_depth: int) -> Any:
    """Parse the body. Raises `BadRequest`."""
    try:
        data = from_json(body, allow_inf_nan=False)
        _check_values(data, max_depth)
    except ValueError as fault:
        message = f"the body is not JSON as it is accepted here: {fault}"
        raise BadRequest(400, RequestCode.INVALID_JSON, message, "body") from None
    return data


def _check_values(data: Any, max_depth: int) -> None:
    """Raise `ValueError` for nesting beyond `max_depth` or a number beyond 64 bits. The tree is visited level by level."""
    level = [data]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        has_containers = False
        for value in level:
            kind = type(value)
            if kind is dict or kind is list:
                has_containers = True
                below.extend(value.values() if kind is dict else value)
            elif kind is int and not -_INT_LIMIT <= value < _INT_LIMIT:
                raise ValueError("a number is beyond 64 bits")
            elif kind is float and not math.isfinite(value):
                raise ValueError("a number is too large")
        if not has_containers:
            return
        level = below
    raise ValueError(f"it is nested more than {max_depth} deep")
