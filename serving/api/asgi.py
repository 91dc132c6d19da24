"""Shared parts of the ASGI middleware: message types, reading and replaying a body, an error answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from serving.api.codes import RequestCode

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Disconnected(Exception):
    """The client disconnected before its request was complete, so no answer can be sent."""


@dataclass(frozen=True)
class ErrorAnswer:
    """An error answer: HTTP status, code, message, the field or header at fault, and one header of the answer."""

    status: int
    code: RequestCode
    message: str
    field: str | None
    header: tuple[str, str] | None = None

    async def send_to(self, send: Send) -> None:
        error = {"message": self.message, "code": self.code.value, "field": self.field, "edit": None}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if self.header is not None:
            headers.append((self.header[0].lower().encode(), self.header[1].encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def path_of(scope: Message) -> str:
    """Return the path as routes are written, without the application's root path."""
    return str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))


def values_of(scope: Message, name: bytes) -> list[str]:
    """List the values of all headers with this lower-case name."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def without(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> Headers:
    return [(key, value) for key, value in headers if key.lower() != name]


async def parts_of(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the body in parts as they arrive. Raises `Disconnected`."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def whole_body(receive: Receive) -> bytes:
    """Read the whole body. Raises `Disconnected`."""
    return b"".join([part async for part in parts_of(receive)])


def replayed(body: bytes, receive: Receive) -> Receive:
    """Make a `receive` that gives the body once and then passes messages on, so that a disconnect is still seen."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay
