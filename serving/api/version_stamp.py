"""Version stamps: ASGI middleware around the OpenAI routes, inside the replica.

A request waits while the engine is paused and, with `X-Errata-At-Least`, until that version is served. It receives a cache
salt that no other state of the weights has, so that no key-value block computed under other weights is reused. The answer
carries the versions under which its tokens were sampled: the header `X-Errata-Version`, and `errata` in the body or in every
event of a stream. Where a memory decided the request, `X-Errata-Edit` and `errata.edits` name the edits that fired.
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
    ErrorAnswer,
    Message,
    Receive,
    Send,
    path_of,
    replayed,
    values_of,
    whole_body,
    without,
)
from serving.api.codes import RequestCode
from serving.api.fired_edits import OF_REQUEST, FiredEdit, FiredEdits
from serving.metrics import ReplicaMetrics, num_tokens

# All routes that generate: the application has no others, because generating without a salt would reuse stale blocks.
STAMPED = ("/v1/completions", "/v1/chat/completions")
AT_LEAST_TIMEOUT_S = 10.0
MAX_DIGITS = 9


class OutOfRotation(RuntimeError):
    """This replica cannot follow the ledger's head, and answers no requests until it does."""

    def __init__(self, version: int, head: int) -> None:
        super().__init__(version, head)
        self.version, self.head = version, head

    def __str__(self) -> str:
        return f"this replica is out of rotation: it has version {self.version}, and the live version is {self.head}. Ask again"


class RolledBack(RuntimeError):
    """The requested version was live once, and is not any more."""

    def __init__(self, wanted: int, head: int) -> None:
        super().__init__(wanted, head)
        self.wanted, self.head = wanted, head

    def __str__(self) -> str:
        return f"version {self.wanted} is not live any more: the service went back to version {self.head}"


class NotQueued(RuntimeError):
    """The requested version is beyond the newest one and all that the queued edits can make."""

    def __init__(self, wanted: int, highest: int) -> None:
        super().__init__(wanted, highest)
        self.wanted, self.highest = wanted, highest

    def __str__(self) -> str:
        return f"version {self.wanted} is not made and no edit is queued for it: with all that wait there are {self.highest}"


class Served(Protocol):
    """The replica's interface to this middleware."""

    version: int
    running_epoch: int  # the number of swaps that changed answers which had begun
    metrics: ReplicaMetrics

    async def admit(self, at_least: int) -> str:
        """Wait until the engine is not paused and serves at least this version; return the current cache salt.

        Raises `OutOfRotation`, and `RolledBack` or `NotQueued` for a version that will not be served.
        """


class VersionStamp:
    """The middleware."""

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
            message = f"{wanted[:100]!r} is not a version number"
            return await self._refuse(send, 400, RequestCode.INVALID_HEADER, message)
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
                return await self._refuse(send, 503, RequestCode.SWAPPING, "a swap is under way; ask again")
            message = f"version {wanted} is not served yet; this replica has version {self.served.version}"
            return await self._refuse(send, 409, RequestCode.NOT_SERVED_YET, message)
        except RolledBack as gone:
            return await self._refuse(send, 409, RequestCode.ROLLED_BACK, str(gone))
        except NotQueued as unknown:
            return await self._refuse(send, 409, RequestCode.NOT_SERVED_YET, str(unknown))
        except OutOfRotation as out:
            return await self._refuse(send, 503, RequestCode.OUT_OF_ROTATION, str(out))
        self.served.metrics.admitted(time.perf_counter() - asked)
        data = scope["errata.json"] if "errata.json" in scope else _parsed(body)
        body, fired = _salted(body, data, salt), FiredEdits.of(data)
        headers = without(scope["headers"], b"content-length")
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        answer = _Answer(self.served, send, fired)
        asking = OF_REQUEST.set(fired)
        try:
            await self.app(scope, replayed(body, receive), answer.send)
        finally:
            OF_REQUEST.reset(asking)
            self.served.metrics.completed(answer.version_min, answer.version_max, answer.status)

    async def _refuse(self, send: Send, status: int, code: RequestCode, message: str) -> None:
        """Refuse with 503 on behalf of this replica, or with another status because of the requested version."""
        self.served.metrics.turned_away(status)
        if status == 503:
            refusal = ErrorAnswer(status, code, message, None, ("Retry-After", "1"))
        else:
            refusal = ErrorAnswer(status, code, message, "X-Errata-At-Least")
        await refusal.send_to(send)


@dataclass
class _Answer:
    """An answer on its way to the client: a JSON body is stamped when it is complete, a stream event by event."""

    served: Served
    forward: Send
    fired: FiredEdits
    version_min: int = field(init=False)
    version_max: int = field(init=False)
    epoch: int = field(init=False)
    start: Message | None = None
    status: int = 500  # if the application ends without an answer
    is_stream: bool = False
    rest: bytes = b""
    untold: list[FiredEdit] = field(default_factory=list)  # edits that fired, until a body or an event has named them

    def __post_init__(self) -> None:
        self.version_min = self.version_max = self.served.version
        self.epoch = self.served.running_epoch

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body":
            return await self.forward(message)
        elif self.is_stream:
            await self._pass_events(message)
        else:
            await self._pass_whole(message)
        if self.is_stream and self.start is not None:
            start, self.start = self.start, None
            await self.forward(start)

    async def _begin(self, message: Message) -> None:
        headers = without(message["headers"], b"content-length")
        self.untold = await self.fired.edits()
        if self.untold:
            headers.append((b"x-errata-edit", ", ".join(edit.in_header for edit in self.untold).encode()))
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
        versions = self._versions()
        self.version_min = min(self.version_min, *versions)  # a rollback lowers the version
        self.version_max = max(self.version_max, *versions)
        self.served.metrics.generated(versions[-1], num_tokens(data, self.is_stream))
        data["errata"] = {"version_min": self.version_min, "version_max": self.version_max}
        if untold := [*self.untold, *self.fired.take_noted()]:
            data["errata"]["edits"], self.untold = [edit.to_json() for edit in untold], []
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()

    def _versions(self) -> list[int]:
        """Return the versions of new tokens: those of the memory that was read, if nothing else has changed since."""
        is_kept = self.served.running_epoch == self.epoch and self.fired.versions
        return self.fired.versions if is_kept else [self.served.version]


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _salted(body: bytes, data: Any, salt: str) -> bytes:
    """Append our salt to the client's own. A body that is not a JSON object is unchanged, and vLLM refuses it."""
    if not isinstance(data, dict) or not isinstance(data.get("cache_salt", ""), str | None):
        return body
    return json.dumps({**data, "cache_salt": f"{data.get('cache_salt') or ''}|{salt}"}).encode()
