"""The hostile requests, over HTTP."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
import uvicorn
from fastapi.routing import APIRoute

from errata.access_keys import Key, Keys
from tests.fakes.served import running
from tests.unit.hostile import Hostile, hostile
from tests.unit.serving.api.application import LIMITS, application

# They read nothing of a request but its key, which is tried on others.
HARMLESS = ("/health", "/ready", "/v1/events", "/v1/status", "/console", "/console/")


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


def test_every_route_of_ours_has_a_hostile_request(tmp_path: Path) -> None:
    ours = [route for route in application(tmp_path, None).routes if isinstance(route, APIRoute)]
    sent = {(one.method, unquote(one.path.partition("?")[0])) for one in hostile()}
    for route in ours:
        is_sent = any(method in route.methods and route.path_regex.match(path) for method, path in sent)
        assert is_sent or route.path in HARMLESS, f"{route.path} has no hostile request"


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
def test_malformed_headers_are_refused(served: str, bearers: dict[str, str], lines: bytes) -> None:
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
        Path(bearers["file"]).touch()  # the file is read again, which is logged
        client.get("/v1/versions", headers={"Authorization": f"Bearer {bearers['read']}"})
    served_side = [record for record in caplog.records if not record.name.startswith("http")]
    lines = [f"{record.getMessage()} {record.__dict__}" for record in served_side]
    assert any("keys are in force" in line for line in lines)
    hashes = [key.sha256 for key in Keys.load(bearers["file"]).entries]
    assert not [line for line in lines for text in (*secret, *hashes) if text in line]


def test_a_key_shows_no_hash() -> None:
    assert "f" * 64 not in repr(Key("a", "read", "f" * 64, datetime.now(UTC)))
