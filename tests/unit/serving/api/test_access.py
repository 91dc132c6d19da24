"""Access: keys, roles, rates, sizes, JSON; and the hostile requests, over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel

from errata.access_keys import Key, Keys, add_key
from serving.api import access, routes
from serving.api.access import Access, AccessLimits, role_for
from serving.api.codes import RequestCode
from serving.api.request_body import BadRequest, parse_json
from serving.api.version_stamp import VersionStamp
from tests.fakes.backend import Backend
from tests.unit.hostile import EDIT, Hostile, hostile
from tests.unit.served import running

LIMITS = AccessLimits(max_body_bytes=1024**2)


class CompletionIn(BaseModel):
    prompt: str


def application(folder: Path, keys: Keys | None, limits: AccessLimits = LIMITS) -> FastAPI:
    app, backend = FastAPI(), Backend(folder)
    app.state.seen = []

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def complete(body: CompletionIn, request: Request) -> dict[str, Any]:
        app.state.seen.append((request.scope, await request.json()))
        return {"choices": []}

    @app.get("/health")
    async def health() -> None:
        """Alive."""

    routes.install(app, backend)
    app.add_middleware(VersionStamp, served=backend)
    app.add_middleware(Access, keys=keys, limits=limits)
    return app


@pytest.fixture(scope="module")
def bearers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys by role; `expired` was valid once, `unknown` never, `limited` allows two requests a minute. `file` is their file."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {role: add_key(file, role, role) for role in ("read", "edit", "admin")}
    made["expired"] = add_key(file, "expired", "admin", timedelta(days=1))
    made["limited"] = add_key(file, "limited", "read", rate=2)
    data = json.loads(file.read_text())
    long_ago = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    data["keys"] = [{**key, "expires": long_ago} if key["name"] == "expired" else key for key in data["keys"]]
    file.write_text(json.dumps(data))
    return {**made, "unknown": "x" * 43, "file": str(file)}


@pytest.fixture
def app(bearers: dict[str, str], tmp_path: Path) -> FastAPI:
    return application(tmp_path, Keys.load(bearers["file"]))


def call(app: Any, method: str, path: str, bearer: str | None = None, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer is not None else {}
    headers |= options.pop("headers", {})

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.request(method, path, headers=headers, **options)

    return asyncio.run(ask())


# -- keys and roles ---------------------------------------------------------------------------------------------------


def test_the_roles_of_routes() -> None:
    assert role_for("GET", "/health") == role_for("HEAD", "/ready") == access.OPEN
    reading = ("/v1/edits", "/v1/edits/3f", "/v1/edits/3f/events", "/v1/versions/3", "/v1/diff", "/metrics", "/v1/models")
    assert {role_for("GET", path) for path in reading} == {"read"}
    assert {role_for("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/v1/blame")} == {"read"}
    assert role_for("POST", "/v1/edits") == "edit"
    unlisted = ("/v1/edits/", "/v1/edits/a/b", "/v1/edits\n", "/V1/edits", "//v1/edits", "/docs", "/load_lora_adapter", "")
    assert {role_for("GET", path) for path in unlisted} == {"admin"}
    assert {role_for("POST", path) for path in ("/v1/rollback", "/v1/revert", "/v1/versions", "/health")} == {"admin"}
    assert role_for("DELETE", "/v1/edits") == role_for("OPTIONS", "/v1/edits") == "admin"


def test_every_route_of_ours_is_listed(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(routes.router(Backend(tmp_path)))
    listed = [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert len(listed) > 10
    for method, path in listed:
        asked = f"{method} {path.replace('{id}', 'x').replace('{number}', '1')}"
        assert any(route.fullmatch(asked) for route, _ in access.TABLE), f"{asked} is in no list of roles"


def test_a_key_of_each_role(app: FastAPI, bearers: dict[str, str]) -> None:
    asked = [("GET", "/v1/versions", None), ("POST", "/v1/edits", EDIT), ("POST", "/v1/rollback", {"version": 0})]
    codes = {
        role: [call(app, method, path, bearers[role], json=body).status_code for method, path, body in asked]
        for role in ("read", "edit", "admin", "expired", "unknown")
    }
    assert codes["read"] == [200, 403, 403]
    assert codes["edit"] == [200, 202, 403]
    assert codes["admin"] == [200, 202, 200]
    assert codes["expired"] == codes["unknown"] == [401, 401, 401]
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


def test_a_large_body_is_refused_before_it_is_read(app: FastAPI, bearers: dict[str, str]) -> None:
    """With a Content-Length nothing is read; without it, reading stops as soon as the body is too large."""
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


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[" * 100_000,
        b"[" * 65 + b"]" * 65,
        b"[" * 64 + b"{}" + b"]" * 64,
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[-1.0E+400]",
        b"[" + b"9" * 400 + b".0]",
        b'{"a": 9223372036854775808}',
        b'{"a": -9223372036854775809}',
        b"9" * 10_000,
        b'{"\\ud800": 1}',
        b'["\\uDFFF"]',
        b'["\x00"]',
        b"\xff",
        '{"a": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
    ],
)
def test_json_that_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_json(body, 64)
    assert (raised.value.refusal.status, raised.value.refusal.code) == (400, RequestCode.INVALID_JSON)


def test_a_name_that_occurs_twice_has_its_last_value() -> None:
    assert parse_json(b'{"a": 1, "a": 2}', 64) == {"a": 2}


def test_json_that_is_accepted() -> None:
    for data in (
        {"a": [1, -(2**63), 2**63 - 1, 0.5, None, "[[[["], "b": [1e300, -5e-324, 10**18, 1.5e-999]},
        "\U0001f600",
        [["[" * 100]],
        [0] * 1000,
    ):
        assert parse_json(json.dumps(data).encode(), 64) == data
    assert parse_json(rb'"\ud83d\ude00 \\ud800"', 64) == "\U0001f600 \\ud800"
    assert parse_json(b"[" * 64 + b"]" * 64, 64)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", "application/vnd.api+json"])
def test_content_types_that_are_accepted(app: FastAPI, bearers: dict[str, str], kind: str) -> None:
    content = json.dumps({"version": 0})
    assert call(app, "POST", "/v1/rollback", bearers["admin"], content=content, headers={"Content-Type": kind}).is_success


# -- the hostile list, over HTTP --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(bearers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve with uvicorn and the settings that Ray Serve uses."""
    app = application(tmp_path_factory.mktemp("served"), Keys.load(bearers["file"]))
    config = uvicorn.Config(app, port=0, access_log=False, log_level=None, log_config=None, lifespan="off")
    with running(config) as url:
        yield url


@pytest.fixture(scope="module")
def client(served: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served, timeout=30) as client:
        yield client


@pytest.mark.parametrize("request_", hostile(LIMITS.max_body_bytes), ids=lambda r: r.name)
def test_hostile_requests_are_refused(client: httpx.Client, bearers: dict[str, str], request_: Hostile) -> None:
    if request_.before is not None:
        assert client.request(**request_.before.options(bearers)).status_code in request_.before.codes
    answer = client.request(**request_.options(bearers))
    assert answer.status_code in request_.codes, answer.text[:300]
    assert "set-cookie" not in answer.headers
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "lines",
    [
        b"Idempotency-Key: a\0b",
        b"Idempotency-Key: a\x01b",
        b"Idempotency-Key\0: a",
        b"Idempotency Key: a",
        b"X-Errata-At-Least: 0\rSet-Cookie: a=b",
        b"Content-Length: -1",
        b"Content-Length: 1e3",
        b"Content-Length: 3\r\nContent-Length: 300000",
        b"Content-Length: 99999999999999999999",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_headers_that_no_client_library_would_send(served: str, bearers: dict[str, str], lines: bytes) -> None:
    host, _, port = served.removeprefix("http://").partition(":")
    key = f"Host: x\r\nAuthorization: Bearer {bearers['admin']}\r\nContent-Type: application/json\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/rollback HTTP/1.1\r\n" + key + lines + b"\r\n\r\n{}{")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert b"set-cookie" not in answer.lower()


def test_no_key_reaches_a_log(
    served: str, bearers: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is logged at all, of every level, uvicorn's included, while keys are right, wrong and misplaced."""
    monkeypatch.setattr("errata.access_keys.LOOK_PERIOD_S", 0.0)
    # pytest hangs its handler on this one too; Serve's uvicorn has none there, and so writes no line of its own
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "handlers", [])
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "ray.serve")
    secret = [value for name, value in bearers.items() if name != "file"]
    with httpx.Client(base_url=served) as client:
        for bearer in secret:
            for method, path in (("GET", "/v1/versions"), ("GET", "/v1/none"), ("POST", "/v1/edits"), ("POST", "/v1/rollback")):
                headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
                answer = client.request(method, path, headers=headers, content=b"[")
                assert bearer not in answer.text and bearer not in str(answer.headers)
            client.get("/v1/versions", params={"api_key": bearer})
        Path(bearers["file"]).touch()  # it is read again, and that is told
        client.get("/v1/versions", headers={"Authorization": f"Bearer {bearers['read']}"})
    served_side = [record for record in caplog.records if not record.name.startswith("http")]
    lines = [f"{record.getMessage()} {record.__dict__}" for record in served_side]
    assert any("keys are in force" in line for line in lines)
    hashes = [key.sha256 for key in Keys.load(bearers["file"]).entries]
    assert not [line for line in lines for text in (*secret, *hashes) if text in line]


def test_a_key_shows_no_hash() -> None:
    assert "f" * 64 not in repr(Key("a", "read", "f" * 64, datetime.now(UTC)))


# -- where it listens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", None])
def test_the_address_is_asked_of_serves_controller(monkeypatch: pytest.MonkeyPatch, host: str | None) -> None:
    client = SimpleNamespace(http_config=SimpleNamespace(host=host))
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda: client)
    assert access.served_host() == host
