"""Authentication and request limits: ASGI middleware, the outermost one of a replica.

It checks in this order: the route and the role that it requires, the key, the key's rate, its concurrent requests, the size of
the body, its JSON, and the work that a request for generation asks for. The key ends here: the application receives neither the
header nor anything from which the key could be derived, so no log can contain it. Without a file of keys, the first
check is that the request names this machine as its `Host` and comes from no other web page. `scope["errata.key"]` is the
caller's `Key`, or None without a file of keys; `scope["errata.json"]` is the parsed body.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from errata.access_keys import Key, Keys, is_loopback
from errata.local.service_limits import ServiceLimits
from serving.api.asgi import App, Disconnected, Message, Receive, Send, path_of, replayed, values_of, without
from serving.api.codes import RequestCode
from serving.api.generation_work import check_generation
from serving.api.request_body import BadRequest, check_json_headers, parse_json, read_body
from serving.api.slots import OPEN, Slots

CHALLENGE = 'Bearer realm="errata"'
GENERATING = {"/v1/completions": False, "/v1/chat/completions": True}  # and whether it is in chat
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?")
UNLISTED = "admin"  # the role for all other routes: vLLM has many, and later releases have more
_ROLES = {
    OPEN: (
        "GET /health",
        "GET /ready",
        "GET /console",
        "GET /console/",
        "GET /console/{}",
    ),  # The console's files hold no data.
    "read": (
        "GET /v1/edits",
        "GET /v1/edits/{}",
        "GET /v1/edits/{}/events",
        "GET /v1/events",
        "GET /v1/versions",
        "GET /v1/versions/{}",
        "GET /v1/status",
        "GET /v1/key",
        "GET /metrics",
        "GET /v1/models",
        "POST /v1/completions",
        "POST /v1/chat/completions",
        "POST /tokenize",
        "POST /detokenize",
        "GET /version",
        "GET /openapi.json",
    ),
    "propose": ("GET /v1/proposals", "GET /v1/proposals/{}", "POST /v1/proposals"),
    "edit": (
        "POST /v1/edits",
        "POST /v1/proposals/{}/approve",
        "POST /v1/proposals/{}/refuse",
        "GET /v1/diff",  # This and a blame read every version in between.
        "POST /v1/blame",
    ),
    "admin": ("POST /v1/rollback", "POST /v1/revert"),
}


def _table(roles: dict[str, tuple[str, ...]]) -> list[tuple[re.Pattern[str], str]]:
    routes = [(route, role) for role, listed in roles.items() for route in listed]
    return [(re.compile(re.escape(route).replace(r"\{\}", "[^/]+")), role) for route, role in routes]


TABLE = _table(_ROLES)
DRY_RUN = b"dry_run=true"


def role_for(method: str, path: str, query: bytes = b"") -> str:
    """Find the role that a route requires, or `OPEN`. Any path that is not listed literally requires `admin`.

    The query counts for a dry run alone, which changes nothing, and only if it is `DRY_RUN` in every character.
    """
    if (method, path, query) == ("POST", "/v1/edits", DRY_RUN):
        return "propose"
    asked = f"{'GET' if method == 'HEAD' else method} {path}"
    return next((role for route, role in TABLE if route.fullmatch(asked)), UNLISTED)


class Access:
    """The middleware. Without keys every caller is admin.

    `errata.access_keys.check_binding` then ensures that only this machine can connect, and `_check_local` that a web page in
    this machine's browser cannot.
    """

    def __init__(
        self,
        app: App,
        keys: Keys | None,
        limits: ServiceLimits | None = None,
        on_refused: Callable[[str], None] = lambda code: None,
    ) -> None:
        self.app, self.keys, self.limits, self.on_refused = app, keys, limits or ServiceLimits(), on_refused
        self._slots = Slots(self.limits)
        self._rates = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": "websockets are not served here"})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        with ExitStack() as held:
            try:
                scope, receive = await self._admitted(scope, receive, held)
            except Disconnected:
                return
            except BadRequest as fault:
                self.on_refused(fault.refusal.code.value)
                return await fault.refusal.send_to(send)
            await self.app(scope, receive, send)

    async def _admitted(self, scope: Message, receive: Receive, held: ExitStack) -> tuple[Message, Receive]:
        """Return the request as the application receives it; `held` has its slots. Raises `BadRequest`, `Disconnected`."""
        self._check_size(scope)
        path = path_of(scope)
        role = role_for(scope["method"], path, scope.get("query_string", b""))
        key = self._key(scope, role)
        held.enter_context(self._slots.request(key, role, path.endswith("/events")))
        admitted = {**scope, "headers": without(scope["headers"], b"authorization"), "errata.key": key}
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return admitted, receive
        body = await read_body(scope, receive, self.limits.max_body_bytes, self.limits.body_timeout_s)
        if body:
            check_json_headers(scope)
            admitted["errata.json"] = parse_json(body, self.limits.max_depth)
        if path in GENERATING:
            work = check_generation(admitted.get("errata.json"), GENERATING[path], self.limits)
            held.enter_context(self._slots.sequences(key, work.sequences))
        return admitted, replayed(body, receive)

    def _check_size(self, scope: Message) -> None:
        max_headers, max_url = self.limits.max_header_bytes, self.limits.max_url_bytes
        if sum(len(name) + len(value) for name, value in scope["headers"]) > max_headers:
            raise BadRequest(431, RequestCode.TOO_LARGE, _larger("headers are", max_headers, "header"), "headers")
        if len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b"")) > max_url:
            raise BadRequest(414, RequestCode.TOO_LARGE, _larger("address is", max_url, "url"), "path")

    def _key(self, scope: Message, role: str) -> Key | None:
        """Find the caller's key, which must have this role; None on an open route and without keys. Raises `BadRequest`."""
        if self.keys is None:
            _check_local(values_of(scope, b"host"), values_of(scope, b"origin"))
        if self.keys is None or role == OPEN:
            return None
        key = self.keys.find(_bearer(values_of(scope, b"authorization")), datetime.now(UTC))
        if key is None:
            message = "this key is unknown or has expired; `errata keys`, on the service's machine, lists and makes keys"
            header = "WWW-Authenticate", f'{CHALLENGE}, error="invalid_token"'
            raise BadRequest(401, RequestCode.UNAUTHORIZED, message, "Authorization", header)
        self._count(key)
        if not key.may(role):
            message = f"{scope['method']} {path_of(scope)[:100]} needs a key of role {role}; this one has {key.role}"
            raise BadRequest(403, RequestCode.FORBIDDEN, message, "Authorization")
        return key

    def _count(self, key: Key) -> None:
        """Raise `BadRequest` beyond the key's rate. Refused requests do not count, so a client that waits is admitted."""
        if key.rate is None:
            return
        limit = RateLimitItemPerMinute(key.rate)
        if not self._rates.hit(limit, key.name):
            wait_s = self._rates.get_window_stats(limit, key.name).reset_time - time.time()
            message = f"this key may make {key.rate:,} requests a minute"
            header = "Retry-After", str(max(1, math.ceil(wait_s)))
            raise BadRequest(429, RequestCode.RATE_LIMITED, message, "Authorization", header)


def _larger(what: str, limit: int, name: str) -> str:
    return f"the {what} larger than {limit:,} bytes (max_{name}_bytes={limit}); send less"


def _bearer(given: Iterable[str]) -> str:
    """Return the key of the one `Authorization: Bearer KEY`. Raises `BadRequest`."""
    scheme, _, bearer = (" ".join(given)).partition(" ")
    if scheme.lower() != "bearer" or not bearer.strip() or " " in bearer.strip():
        message = "a key is needed: send Authorization: Bearer KEY (errata reads it from ERRATA_KEY)"
        raise BadRequest(401, RequestCode.UNAUTHORIZED, message, "Authorization", ("WWW-Authenticate", CHALLENGE))
    return bearer.strip()


def _check_local(hosts: Sequence[str], origins: Iterable[str]) -> None:
    """Raise `BadRequest` for requests that a web page in a browser on this machine could send: without keys it would be admin.

    With DNS rebinding a page's own name resolves to 127.0.0.1, so that the browser takes page and service for one origin and
    lets the page read answers; but its name is then the `Host`. A page from anywhere else has another `Origin`, which includes
    pages on other ports of this machine.
    """
    host = hosts[0].lower() if len(hosts) == 1 else ""
    named = _HOST.fullmatch(host)
    if named is None or not is_loopback(named[1]):
        message = f"without keys this service answers only to 127.0.0.1, [::1] and localhost, not to {', '.join(hosts)[:100]!r}"
        raise BadRequest(403, RequestCode.FORBIDDEN, f"{message}; start it with --keys to use another name", "Host")
    for origin in origins:
        if origin.lower() not in (f"http://{host}", f"https://{host}"):
            message = f"pages of {origin[:100]!r} may not use this service, which runs without keys"
            raise BadRequest(403, RequestCode.FORBIDDEN, message, "Origin")


def served_host() -> str | None:
    """Ask Serve's controller, from inside a replica, which address its proxies listen on; None if they do not.

    The call blocks: in a running event loop, call it in a thread.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "it raises where no Serve runs"
    return str(client.http_config.host) if client.http_config.host is not None else None
