"""Access: keys, roles, hosts and origins, rates and sizes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI

from errata.access_keys import Keys
from serving.api import access, routes
from serving.api.access import Access, role_for
from tests.fakes.backend import Backend
from tests.unit.hostile import EDIT
from tests.unit.serving.api.application import LIMITS, application, call


def test_each_route_requires_its_role_and_an_unlisted_one_admin() -> None:
    assert role_for("GET", "/health") == role_for("HEAD", "/ready") == access.OPEN
    reading = ("/v1/edits", "/v1/edits/3f", "/v1/edits/3f/events", "/v1/versions/3", "/metrics", "/v1/models")
    assert {role_for("GET", path) for path in reading} == {"read"}
    assert {role_for("POST", path) for path in ("/v1/completions", "/v1/chat/completions")} == {"read"}
    assert role_for("POST", "/v1/edits") == role_for("POST", "/v1/blame") == role_for("GET", "/v1/diff") == "edit"
    assert role_for("POST", "/v1/proposals") == role_for("GET", "/v1/proposals/3f") == "propose"
    assert {role_for("POST", f"/v1/proposals/3f/{what}") for what in ("approve", "refuse")} == {"edit"}
    unlisted = ("/v1/edits/", "/v1/edits/a/b", "/v1/edits\n", "/V1/edits", "//v1/edits", "/docs", "/load_lora_adapter", "")
    assert {role_for("GET", path) for path in unlisted} == {"admin"}
    assert {role_for("POST", path) for path in ("/v1/rollback", "/v1/revert", "/v1/versions", "/health")} == {"admin"}
    assert role_for("DELETE", "/v1/edits") == role_for("OPTIONS", "/v1/edits") == "admin"


def test_only_a_plain_dry_run_needs_less_than_a_post() -> None:
    """The last of repeated values counts for the route, so that no other query may pass as a dry run."""
    assert role_for("POST", "/v1/edits", b"dry_run=true") == "propose"
    others = (b"", b"dry_run=false", b"dry_run=1", b"dry_run=true&dry_run=false", b"dry_run=true&", b"dry%5Frun=true")
    assert {role_for("POST", "/v1/edits", query) for query in others} == {"edit"}
    assert role_for("POST", "/v1/rollback", b"dry_run=true") == "admin"


def test_every_route_of_ours_is_listed(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(routes.router(Backend(tmp_path)))
    listed = [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert len(listed) > 10
    for method, path in listed:
        asked = f"{method} {path.replace('{id}', 'x').replace('{number}', '1')}"
        assert any(route.fullmatch(asked) for route, _ in access.TABLE), f"{asked} is in no list of roles"


def test_a_key_opens_the_routes_of_its_role_only(app: FastAPI, bearers: dict[str, str]) -> None:
    asked = [("GET", "/v1/versions", None), ("POST", "/v1/edits?dry_run=true", EDIT), ("POST", "/v1/proposals", EDIT)]
    asked += [("POST", "/v1/edits", EDIT), ("POST", "/v1/rollback", {"version": 0})]
    codes = {
        role: [call(app, method, path, bearers[role], json=body).status_code for method, path, body in asked]
        for role in ("read", "propose", "edit", "admin", "expired", "unknown")
    }
    assert codes["read"] == [200, 403, 403, 403, 403]
    assert codes["propose"] == [200, 200, 201, 403, 403]
    assert codes["edit"] == [200, 200, 201, 202, 403]
    assert codes["admin"] == [200, 200, 201, 202, 200]
    assert codes["expired"] == codes["unknown"] == [401] * 5
    assert [call(app, "GET", path).status_code for path in ("/health", "/ready", "/v1/status")] == [200, 200, 401]


def test_refusals_say_what_to_do(app: FastAPI, bearers: dict[str, str]) -> None:
    none = call(app, "GET", "/v1/versions")
    assert none.headers["WWW-Authenticate"] == 'Bearer realm="errata"'
    assert none.json()["error"] == {
        "message": "a key is needed: send Authorization: Bearer KEY (errata reads it from ERRATA_KEY)",
        "code": "unauthorized",
        "field": "Authorization",
        "edit": None,
    }
    assert 'error="invalid_token"' in call(app, "GET", "/v1/versions", bearers["expired"]).headers["WWW-Authenticate"]
    low = call(app, "POST", "/v1/rollback", bearers["read"], json={"version": 0}).json()["error"]["message"]
    assert low == "POST /v1/rollback needs a key of role admin; this one has read"


LOCAL = ("127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:8000", "[::1]", "[::1]:8000", "127.8.9.10:1")
FOREIGN = (
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example:8000",
    "127.0.0.1@evil.example",
    "evil.example:127.0.0.1",
    "[::1].evil.example",
    "127.0.0.1:8000:1",
    "10.0.0.1:8000",
    "0.0.0.0:8000",
    "127.0.0.1, evil.example",
    "localhost.",
    "",
)


@pytest.mark.parametrize("host", LOCAL)
def test_without_keys_this_machine_is_admin(tmp_path: Path, host: str) -> None:
    """Requests of curl, which sends no Origin, and of a page of the service itself."""
    app, back = application(tmp_path, None), {"json": {"version": 0}}
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}, {"Host": host, "Origin": f"https://{host}"}):
        assert call(app, "POST", "/v1/rollback", headers=headers, **back).status_code == 200, headers
        assert call(app, "GET", "/v1/edits", headers=headers).status_code == 200, headers


@pytest.mark.parametrize("host", FOREIGN)
def test_without_keys_a_name_that_resolves_to_this_machine_is_refused(tmp_path: Path, host: str) -> None:
    """DNS rebinding: for the browser, page and service have one origin, so it may send no Origin."""
    app = application(tmp_path, None)
    for method, path in (("GET", "/v1/edits"), ("GET", "/ready"), ("POST", "/v1/rollback")):
        for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
            answer = call(app, method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["field"]) == (403, "Host"), headers
            assert "--keys" in answer.json()["error"]["message"]


@pytest.mark.parametrize("num_hosts", [0, 2])
def test_without_keys_there_is_one_host(tmp_path: Path, num_hosts: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1")] * num_hosts
    scope = {"type": "http", "method": "GET", "path": "/v1/edits", "headers": headers}
    asyncio.run(Access(application(tmp_path, None), None, LIMITS)(scope, None, send))
    assert sent[0]["status"] == 403


ELSEWHERE = (
    "https://example.org",
    "null",
    "http://127.0.0.1.example.org",
    "http://[",
    "",
    "http://localhost:3000",
    "http://localhost:8000",
    "http://127.0.0.1",
    "http://127.0.0.1:8001",
    "http://127.0.0.1:8000/",
    "ftp://127.0.0.1:8000",
)


@pytest.mark.parametrize("origin", ELSEWHERE)
def test_without_keys_a_page_from_elsewhere_is_refused(tmp_path: Path, origin: str) -> None:
    """Another port of this machine is another origin, and so is another name for it."""
    app = application(tmp_path, None)
    headers = {"Host": "127.0.0.1:8000", "Origin": origin}
    answer = call(app, "POST", "/v1/rollback", headers=headers, json={"version": 0})
    assert (answer.status_code, answer.json()["error"]["field"]) == (403, "Origin")


def test_with_keys_any_host_name_is_accepted(app: FastAPI, bearers: dict[str, str]) -> None:
    """A page from elsewhere does not have the key."""
    headers = {"Host": "errata.example:8000", "Origin": "https://other.example"}
    assert call(app, "GET", "/v1/edits", bearers["read"], headers=headers).status_code == 200


def test_the_application_receives_the_callers_name_and_never_the_key(app: FastAPI, bearers: dict[str, str]) -> None:
    assert call(app, "POST", "/v1/completions", bearers["read"], json={"prompt": "p"}).status_code == 200
    scope, body = app.state.seen[-1]
    assert scope["errata.key"].name == "read"
    assert body == {"prompt": "p", "cache_salt": "|salt"}
    assert bearers["read"] not in repr(scope)
    assert scope["errata.key"].sha256 not in repr(scope)


def test_the_author_of_an_edit_is_the_name_of_the_key(app: FastAPI, bearers: dict[str, str]) -> None:
    made = call(app, "POST", "/v1/edits", bearers["edit"], json=EDIT).json()
    assert made["edits"][0]["poster"] == "edit"


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_key_beyond_its_rate_gets_retry_after(bearers: dict[str, str], tmp_path: Path) -> None:
    app = application(tmp_path, Keys.load(bearers["file"]))
    answers = [call(app, "GET", "/v1/versions", bearers["limited"]) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert answers[-1].json()["error"]["message"] == "this key may make 2 requests a minute"
    assert call(app, "GET", "/v1/versions", bearers["read"]).status_code == 200


def test_a_refusal_is_counted_by_its_code(bearers: dict[str, str], tmp_path: Path) -> None:
    codes: list[str] = []
    door = Access(application(tmp_path, None), Keys.load(bearers["file"]), LIMITS, codes.append)
    call(door, "GET", "/v1/versions")
    call(door, "POST", "/v1/rollback", bearers["read"], json={"version": 0})
    call(door, "POST", "/v1/completions", bearers["read"], json={"prompt": "p", "n": 65, "max_tokens": 1})
    assert codes == ["unauthorized", "forbidden", "too_many_sequences"]


def test_a_large_body_is_refused_before_it_is_read(app: FastAPI, bearers: dict[str, str]) -> None:
    """A body with a Content-Length is not read; without it, reading stops as soon as the body is too large."""
    taken = []

    async def parts() -> AsyncIterator[bytes]:
        for number in range(100):
            taken.append(number)
            yield b"x" * (LIMITS.max_body_bytes // 10)

    async def receive() -> dict[str, Any]:
        raise AssertionError("read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"Host": "localhost", "Content-Type": "application/json"}
    guard = access.Access(app, None, LIMITS)
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/edits",
        "headers": [(b"host", b"localhost"), (b"content-length", str(LIMITS.max_body_bytes + 1).encode())],
    }
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 413

    iterator = parts()

    async def streamed() -> dict[str, Any]:
        return {"type": "http.request", "body": await anext(iterator), "more_body": True}

    sent.clear()
    asyncio.run(guard({**scope, "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()]}, streamed, send))
    assert sent[0]["status"] == 413
    assert len(taken) == 11


def test_a_client_that_disconnects_gets_no_answer(app: FastAPI) -> None:
    messages = [{"type": "http.request", "body": b"[", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/edits", "headers": [(b"host", b"localhost")]}
    asyncio.run(access.Access(app, None, LIMITS)(scope, receive, send))
    assert (messages, sent) == ([], [])


def test_websockets_are_closed(app: FastAPI) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(access.Access(app, None, LIMITS)({"type": "websocket", "path": "/v1/realtime"}, None, send))
    assert (sent[0]["type"], sent[0]["code"]) == ("websocket.close", 1008)


# -- where it listens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", None])
def test_the_address_is_asked_of_serves_controller(monkeypatch: pytest.MonkeyPatch, host: str | None) -> None:
    client = SimpleNamespace(http_config=SimpleNamespace(host=host))
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda: client)
    assert access.served_host() == host
