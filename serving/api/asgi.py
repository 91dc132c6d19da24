"""What our middleware shares: the shapes of ASGI, a body read and given again, an error as the gateway words it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Disconnected(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


def path_of(scope: Message) -> str:
    """The path that routes are written for."""
    return str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))


def values_of(scope: Message, name: bytes) -> list[str]:
    """What a header says, each time that it is there; `name` in small letters."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def without(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> Headers:
    return [(key, value) for key, value in headers if key.lower() != name]


async def parts_of(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it comes in. Raises `Disconnected`."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def whole_body(receive: Receive) -> bytes:
    """Raises `Disconnected`."""
    return b"".join([part async for part in parts_of(receive)])


def replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the client does: a disconnect must still be seen."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def refuse(send: Send, code: int, message: str, field: str | None, header: tuple[str, str] | None = None) -> None:
    body = json.dumps({"error": {"message": message, "field": field, "edit": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if header is not None:
        headers.append((header[0].lower().encode(), header[1].encode()))
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
