"""Who may do what, and how much of it: ASGI middleware, the outermost one of a replica.

In this order: the route and the role that it needs, the key, the key's rate, the size of the body, its JSON. The key goes
no further than here: the application behind gets neither the header nor anything to make it from, so no log can hold it.
Without a file of keys, first of all: that the request names this machine as its `Host`, and comes from no other page.
`scope["errata.key"]` says who asks (a `Key`; None without a file of keys), `scope["errata.json"]` is the parsed body.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from errata.access_keys import Key, Keys, is_loopback
from serving.api.asgi import App, Disconnected, Message, Receive, Send, path_of, refuse, replayed, values_of, without
from serving.api.request_body import BadRequest, check_json_headers, parse_json, read_body

CHALLENGE = 'Bearer realm="errata"'
OPEN = "open"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?")
UNLISTED = "admin"  # vLLM has routes that nobody here knows of, and may get more
_ROLES = {
    OPEN: ("GET /health", "GET /ready"),
    "read": (
        "GET /v1/edits",
        "GET /v1/edits/{}",
        "GET /v1/edits/{}/events",
        "GET /v1/events",
        "GET /v1/versions",
        "GET /v1/versions/{}",
        "GET /v1/diff",
        "POST /v1/blame",
        "GET /v1/status",
        "GET /metrics",
        "GET /v1/models",
        "POST /v1/completions",
        "POST /v1/chat/completions",
        "POST /tokenize",
        "POST /detokenize",
        "GET /version",
        "GET /openapi.json",
    ),
    "edit": ("POST /v1/edits",),
    "admin": ("POST /v1/rollback", "POST /v1/revert"),
}


def _table(roles: dict[str, tuple[str, ...]]) -> list[tuple[re.Pattern[str], str]]:
    routes = [(route, role) for role, listed in roles.items() for route in listed]
    return [(re.compile(re.escape(route).replace(r"\{\}", "[^/]+")), role) for route, role in routes]


TABLE = _table(_ROLES)


def role_for(method: str, path: str) -> str:
    """The role that a route needs, or `OPEN`. A route that is not listed needs `admin`, spelt however slightly otherwise."""
    asked = f"{'GET' if method == 'HEAD' else method} {path}"
    return next((role for route, role in TABLE if route.fullmatch(asked)), UNLISTED)


@dataclass(frozen=True)
class AccessLimits:
    """Of one request. A body is parsed between the tokens of other people's streams: a larger one would hold them up."""

    max_body_bytes: int = 2**20
    max_header_bytes: int = 16 * 2**10
    max_url_bytes: int = 8 * 2**10
    max_depth: int = 64


class Access:
    """The middleware itself. Without keys every caller is admin: `errata.access_keys.check_binding` ensures that only this
    machine can ask then, and `_check_local` that a page in this machine's browser cannot."""

    def __init__(self, app: App, keys: Keys | None, limits: AccessLimits | None = None) -> None:
        self.app, self.keys, self.limits = app, keys, limits or AccessLimits()
        self._rates = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": "websockets are not served here"})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            scope, receive = await self._admitted(scope, receive)
        except Disconnected:
            return
        except BadRequest as fault:
            return await refuse(send, fault.code, fault.message, fault.field, fault.header)
        await self.app(scope, receive, send)

    async def _admitted(self, scope: Message, receive: Receive) -> tuple[Message, Receive]:
        """The request as the application gets it. Raises `BadRequest`, `Disconnected`."""
        self._check_size(scope)
        key = self._key(scope)
        admitted = {**scope, "headers": without(scope["headers"], b"authorization"), "errata.key": key}
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return admitted, receive
        body = await read_body(scope, receive, self.limits.max_body_bytes)
        if body:
            check_json_headers(scope)
            admitted["errata.json"] = parse_json(body, self.limits.max_depth)
        return admitted, replayed(body, receive)

    def _check_size(self, scope: Message) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self.limits.max_header_bytes:
            raise BadRequest(431, f"the headers are larger than {self.limits.max_header_bytes:,} bytes", "headers")
        if len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b"")) > self.limits.max_url_bytes:
            raise BadRequest(414, f"the address is longer than {self.limits.max_url_bytes:,} bytes", "path")

    def _key(self, scope: Message) -> Key | None:
        """Whose request this is; None on an open route and without keys. Raises `BadRequest`."""
        method, path = scope["method"], path_of(scope)
        role = role_for(method, path)
        if self.keys is None:
            _check_local(values_of(scope, b"host"), values_of(scope, b"origin"))
        if self.keys is None or role == OPEN:
            return None
        key = self.keys.find(_bearer(values_of(scope, b"authorization")), datetime.now(UTC))
        if key is None:
            message = "this key is not known here, or has expired; `errata keys` lists and makes them where the service runs"
            raise BadRequest(401, message, "Authorization", ("WWW-Authenticate", f'{CHALLENGE}, error="invalid_token"'))
        self._count(key)
        if not key.may(role):
            message = f"{method} {path[:100]} needs a key of role {role}; this one has {key.role}"
            raise BadRequest(403, message, "Authorization")
        return key

    def _count(self, key: Key) -> None:
        """Refused requests do not count: a client that waits as it is told gets in."""
        if key.rate is None:
            return
        limit = RateLimitItemPerMinute(key.rate)
        if not self._rates.hit(limit, key.name):
            wait_s = self._rates.get_window_stats(limit, key.name).reset_time - time.time()
            message = f"this key may make {key.rate:,} requests a minute"
            raise BadRequest(429, message, "Authorization", ("Retry-After", str(max(1, math.ceil(wait_s)))))


def _bearer(given: Iterable[str]) -> str:
    """Raises `BadRequest` unless there is one `Authorization: Bearer KEY`."""
    scheme, _, bearer = (" ".join(given)).partition(" ")
    if scheme.lower() != "bearer" or not bearer.strip() or " " in bearer.strip():
        message = "a key is needed: send Authorization: Bearer KEY (errata reads it from ERRATA_KEY)"
        raise BadRequest(401, message, "Authorization", ("WWW-Authenticate", CHALLENGE))
    return bearer.strip()


def _check_local(hosts: Sequence[str], origins: Iterable[str]) -> None:
    """Raises `BadRequest` for what a page in a browser on this machine could ask for; without keys it would be admin.

    A page whose own name was made to stand for 127.0.0.1 (DNS rebinding) is to its browser of one origin with this service,
    so may ask and read; but its name is then the `Host`. A page from anywhere else has another `Origin`: another port of
    this machine is another page too.
    """
    host = hosts[0].lower() if len(hosts) == 1 else ""
    named = _HOST.fullmatch(host)
    if named is None or not is_loopback(named[1]):
        message = (
            f"without keys this service answers to 127.0.0.1, [::1] and localhost alone, not to {', '.join(hosts)[:100]!r}"
        )
        raise BadRequest(403, f"{message}; start it with --keys to use another name", "Host")
    for origin in origins:
        if origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise BadRequest(403, f"pages of {origin[:100]!r} may not use this service, which runs without keys", "Origin")


def served_host() -> str | None:
    """The address that Serve's proxies listen on, or None if they do not; asked of Serve's controller, from inside a replica.

    It waits for the controller: in a running event loop, call it in a thread.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "it raises where no Serve runs"
    return str(client.http_config.host) if client.http_config.host is not None else None
