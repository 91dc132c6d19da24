"""Which version answered: ASGI middleware around the OpenAI routes, inside the replica.

A request waits while a swap runs and, with `X-Errata-At-Least`, until its version is served. It is given a cache salt that
no other state of the weights has, so that no key-value block computed under other weights is reused. The answer
carries the versions that its tokens were sampled under: the header `X-Errata-Version`, and `errata` in the body or in
every event of a stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

STAMPED = ("/v1/completions", "/v1/chat/completions")
# Other routes that take a POST and start no generation. What generates without a salt must not be reached.
HARMLESS = ("/tokenize", "/detokenize", "/ping", "/v1/edits", "/v1/rollback")
AT_LEAST_TIMEOUT_S = 10.0


class Served(Protocol):
    """The replica, as the middleware sees it."""

    version: int

    async def admit(self, at_least: int) -> str:
        """Wait until no swap runs and the version is at least this; returns the cache salt of now."""


class Stamp:
    """The middleware itself."""

    def __init__(self, app: App, served: Served) -> None:
        self.app, self.served = app, served

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if path in STAMPED:
            return await self._generate(scope, receive, send)
        if path in HARMLESS:
            return await self.app(scope, receive, send)
        await _refuse(send, 404, f"POST {path} is not served here", None)

    async def _generate(self, scope: Message, receive: Receive, send: Send) -> None:
        wanted = dict(scope["headers"]).get(b"x-errata-at-least", b"0").decode("latin-1")
        if not wanted.isascii() or not wanted.isdigit():
            return await _refuse(send, 400, f"{wanted!r} is not a version number", "X-Errata-At-Least")
        body = await _whole_body(receive)
        try:
            async with asyncio.timeout(AT_LEAST_TIMEOUT_S):
                salt = await self.served.admit(int(wanted))
        except TimeoutError:
            message = f"version {wanted} is not served yet; this replica has version {self.served.version}"
            return await _refuse(send, 409, message, "X-Errata-At-Least")
        body = _salted(body, salt)
        headers = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self.app(scope, _replayed(body, receive), _Answer(self.served, send).send)


@dataclass
class _Answer:
    """Stamps what passes: a JSON body when it is whole, a stream event by event."""

    served: Served
    forward: Send
    version_min: int = field(init=False)
    version_max: int = field(init=False)
    start: Message | None = None
    is_stream: bool = False
    rest: bytes = b""

    def __post_init__(self) -> None:
        self.version_min = self.version_max = self.served.version

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] != "http.response.body":
            return await self.forward(message)
        elif self.is_stream:
            await self._pass_events(message)
        else:
            await self._pass_whole(message)
        if self.is_stream and self.start is not None:
            start, self.start = self.start, None
            await self.forward(start)

    def _begin(self, message: Message) -> None:
        headers = [(k, v) for k, v in message["headers"] if k.lower() != b"content-length"]
        kind = dict(message["headers"]).get(b"content-type", b"")
        self.is_stream = kind.startswith(b"text/event-stream")
        self.start = {**message, "headers": [*headers, (b"x-errata-version", str(self.version_min).encode())]}

    async def _pass_events(self, message: Message) -> None:
        is_last = not message.get("more_body", False)
        *events, self.rest = (self.rest + message.get("body", b"")).split(b"\n\n")
        if is_last and self.rest:
            events, self.rest = [*events, self.rest], b""
        body = b"".join(self._stamped_event(event) + b"\n\n" for event in events)
        if body or is_last:
            await self.forward({**message, "body": body})

    async def _pass_whole(self, message: Message) -> None:
        self.rest += message.get("body", b"")
        if message.get("more_body", False):
            return
        assert self.start is not None
        body = self._stamped(self.rest)
        headers = [*self.start["headers"], (b"content-length", str(len(body)).encode())]
        await self.forward({**self.start, "headers": headers})
        await self.forward({**message, "body": body})

    def _stamped_event(self, event: bytes) -> bytes:
        prefix = b"data: "
        return prefix + self._stamped(event[len(prefix) :]) if event.startswith(prefix + b"{") else event

    def _stamped(self, body: bytes) -> bytes:
        data = _parsed(body)
        if data is None:
            return body
        self.version_min = min(self.version_min, self.served.version)  # a rollback goes down
        self.version_max = max(self.version_max, self.served.version)
        data["errata"] = {"version_min": self.version_min, "version_max": self.version_max}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(body)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _salted(body: bytes, salt: str) -> bytes:
    """With our salt after the client's own; what is not a JSON object stays as it is, for vLLM to refuse."""
    data = _parsed(body)
    if data is None or not isinstance(data.get("cache_salt", ""), str | None):
        return body
    data["cache_salt"] = f"{data.get('cache_salt') or ''}|{salt}"
    return json.dumps(data).encode()


async def _whole_body(receive: Receive) -> bytes:
    return b"".join([part async for part in _parts(receive)])


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the client does: a disconnect must still be seen."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(send: Send, code: int, message: str, field: str | None) -> None:
    body = json.dumps({"error": {"message": message, "field": field, "edit": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
