"""Which version answered: ASGI middleware around the OpenAI routes, inside the replica.

A request waits while the engine is paused and, with `X-Errata-At-Least`, until its version is served. It is given a cache
salt that no other state of the weights has, so that no key-value block computed under other weights is reused. The answer
carries the versions that its tokens were sampled under: the header `X-Errata-Version`, and `errata` in the body or in every
event of a stream.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.api.asgi import (
    App,
    Disconnected,
    Message,
    Receive,
    Send,
    path_of,
    refuse,
    replayed,
    values_of,
    whole_body,
    without,
)
from serving.metrics import ReplicaMetrics, num_tokens

# All routes that generate: the application has no other, since what would generate without a salt must not be reached.
STAMPED = ("/v1/completions", "/v1/chat/completions")
AT_LEAST_TIMEOUT_S = 10.0
MAX_DIGITS = 9


class OutOfRotation(RuntimeError):
    """This replica cannot follow the ledger's head, and answers nothing until it does."""

    def __init__(self, version: int, head: int) -> None:
        super().__init__(version, head)
        self.version, self.head = version, head

    def __str__(self) -> str:
        return f"this replica is out of rotation: it has version {self.version}, and the live one is {self.head}. Ask again"


class RolledBack(RuntimeError):
    """A version was asked for that was live once, and is not any more."""

    def __init__(self, wanted: int, head: int) -> None:
        super().__init__(wanted, head)
        self.wanted, self.head = wanted, head

    def __str__(self) -> str:
        return f"version {self.wanted} is not live any more: the service went back to version {self.head}"


class Served(Protocol):
    """The replica, as the middleware sees it."""

    version: int
    metrics: ReplicaMetrics

    async def admit(self, at_least: int) -> str:
        """Wait until the engine is not paused and the version is at least this; returns the cache salt of now.

        Raises `OutOfRotation`, and `RolledBack` if that version will not come.
        """


class VersionStamp:
    """The middleware itself."""

    def __init__(self, app: App, served: Served) -> None:
        self.app, self.served = app, served

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if path_of(scope) in STAMPED:
            return await self._generate(scope, receive, send)
        await self.app(scope, receive, send)

    async def _generate(self, scope: Message, receive: Receive, send: Send) -> None:
        wanted = next(iter(values_of(scope, b"x-errata-at-least")), "0")
        if not wanted.isascii() or not wanted.isdigit() or len(wanted) > MAX_DIGITS:
            return await self._refuse(send, 400, f"{wanted[:100]!r} is not a version number")
        try:
            body = await whole_body(receive)
        except Disconnected:
            return
        asked = time.perf_counter()
        try:
            async with asyncio.timeout(AT_LEAST_TIMEOUT_S):
                salt = await self.served.admit(int(wanted))
        except TimeoutError:
            if int(wanted) <= self.served.version:
                return await self._refuse(send, 503, "a swap is under way; ask again")
            return await self._refuse(
                send, 409, f"version {wanted} is not served yet; this replica has version {self.served.version}"
            )
        except RolledBack as gone:
            return await self._refuse(send, 409, str(gone))
        except OutOfRotation as out:
            return await self._refuse(send, 503, str(out))
        self.served.metrics.admitted(time.perf_counter() - asked)
        body = _salted(body, scope["errata.json"] if "errata.json" in scope else _parsed(body), salt)
        headers = without(scope["headers"], b"content-length")
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        answer = _Answer(self.served, send)
        try:
            await self.app(scope, replayed(body, receive), answer.send)
        finally:
            self.served.metrics.completed(answer.version_min, answer.version_max, answer.status)

    async def _refuse(self, send: Send, code: int, message: str) -> None:
        """What is wrong with the version that was asked for, or, by 503, with this replica."""
        self.served.metrics.turned_away(code)
        if code == 503:
            return await refuse(send, code, message, None, ("Retry-After", "1"))
        await refuse(send, code, message, "X-Errata-At-Least")


@dataclass
class _Answer:
    """Stamps what passes: a JSON body when it is whole, a stream event by event."""

    served: Served
    forward: Send
    version_min: int = field(init=False)
    version_max: int = field(init=False)
    start: Message | None = None
    status: int = 500  # if the application ends without a word
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
        headers = without(message["headers"], b"content-length")
        kind = dict(message["headers"]).get(b"content-type", b"")
        self.status = message["status"]
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
        self.served.metrics.generated(self.served.version, num_tokens(data, self.is_stream))
        data["errata"] = {"version_min": self.version_min, "version_max": self.version_max}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _salted(body: bytes, data: Any, salt: str) -> bytes:
    """With our salt after the client's own; what is not a JSON object stays as it is, for vLLM to refuse."""
    if not isinstance(data, dict) or not isinstance(data.get("cache_salt", ""), str | None):
        return body
    return json.dumps({**data, "cache_salt": f"{data.get('cache_salt') or ''}|{salt}"}).encode()
