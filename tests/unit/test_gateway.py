"""The HTTP door without Ray or an engine: codes, shapes, and the version stamp on what passes through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from ray.exceptions import ActorDiedError, RayTaskError

from errata.edit import Edit, EditRejected
from errata.generate import SwapFailed
from errata.ledger import LedgerConflict, UnknownVersion, Version
from serving import gateway, stamp
from serving.journal import KeyReused, UnknownEdit

VERSION = Version(1, 0, "Toy", "", "f", "now", (Edit("p", "t", id="e"),), {"efficacy": 1.0}, 8, {"m": 1}, {"m": 0.5}, Path())


class Backend:
    """Answers with what it was given, or raises it."""

    def __init__(self, answer: Any = None) -> None:
        self.answer, self.seen = answer, []

    async def submit(self, *arguments: Any) -> Any:
        return self._answer(*arguments)

    async def edit_status(self, *arguments: Any) -> Any:
        return self._answer(*arguments)

    async def rollback(self, *arguments: Any) -> Any:
        return self._answer(*arguments)

    async def service_status(self) -> Any:
        return self._answer()

    def _answer(self, *arguments: Any) -> Any:
        self.seen.append(arguments)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def versions(self) -> tuple[int, list[Version]]:
        return 1, [VERSION]

    def version_with_edits(self, number: int) -> Version:
        if number != 1:
            raise UnknownVersion(f"there is no version {number}")
        return VERSION


def call(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def asked(backend: Backend, method: str, path: str, **options: Any) -> httpx.Response:
    app = FastAPI()
    gateway.install(app, backend)
    return call(app, method, path, **options)


def entry(id: str, state: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "state": state, "edit": {"prompt": "p", "target": "t"}, "created": 0.0, **more}


BODY = {"edits": [{"prompt": "p", "target": "t"}], "wait": True}


@pytest.mark.parametrize(
    ("entries", "wait", "code"),
    [
        ([entry("a", "applied", version=3), entry("b", "applied", version=4)], True, 200),
        ([entry("a", "applied", version=3)], False, 202),
        ([entry("a", "applied", version=3), entry("b", "queued")], True, 202),
        ([entry("a", "applied", version=3), entry("b", "rejected", reason="no", field="prompt")], True, 422),
    ],
)
def test_codes_of_an_edit(entries: list[dict[str, Any]], wait: bool, code: int) -> None:
    backend = Backend(entries)
    answer = asked(backend, "POST", "/v1/edits", json={**BODY, "wait": wait}, headers={"Idempotency-Key": "k"})
    assert answer.status_code == code
    assert backend.seen == [([{"prompt": "p", "target": "t"}], wait, "k")]
    assert answer.json()["ids"] == [e["id"] for e in entries]
    if code == 200:
        assert answer.json()["version"] == 4
    if code == 422:
        assert answer.json()["error"] == {"message": "no", "field": "prompt", "edit": "b"}


def wrapped(cause: Exception) -> RayTaskError:
    return RayTaskError("submit", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "code", "field"),
    [
        (EditRejected("bad", edit=0, field="target"), 422, "target"),
        (KeyReused("again"), 409, "Idempotency-Key"),
        (LedgerConflict(1, 2), 409, None),
        (UnknownVersion("none"), 404, "version"),
        (UnknownEdit("none"), 404, "id"),
        (SwapFailed(3, ["r"], "late"), 503, None),
        (ActorDiedError(), 503, None),
    ],
)
@pytest.mark.parametrize("through_ray", [False, True])
def test_codes_of_errors(error: Exception, code: int, field: str | None, through_ray: bool) -> None:
    raised = wrapped(error) if through_ray and not isinstance(error, ActorDiedError) else error
    answer = asked(Backend(raised), "POST", "/v1/edits", json=BODY)
    assert (answer.status_code, answer.json()["error"]["field"]) == (code, field)


def test_versions() -> None:
    assert asked(Backend(), "GET", "/v1/versions").json() == {
        "head": 1,
        "versions": [
            {
                "version": 1,
                "parent": 0,
                "editor": "Toy",
                "plan": "",
                "fingerprint": "f",
                "created": "now",
                "num_edits": 1,
                "num_bytes": 8,
                "norms": {"m": 0.5},
                "ranks": {"m": 1},
                "scorecard": {"efficacy": 1.0},
            }
        ],
    }
    assert asked(Backend(), "GET", "/v1/versions/1").json()["edits"] == [{"prompt": "p", "target": "t", "id": "e"}]
    assert asked(Backend(), "GET", "/v1/versions/2").status_code == 404


# -- the stamp --------------------------------------------------------------------------------------------------------


class Served:
    version = 3

    def __init__(self) -> None:
        self.at_least: list[int] = []

    async def admit(self, at_least: int) -> str:
        self.at_least.append(at_least)
        while self.version < at_least:
            await asyncio.sleep(0.001)
        return f"epoch-{self.version}"


def openai(served: Served) -> tuple[FastAPI, list[Any]]:
    app, seen = FastAPI(), []

    @app.post("/v1/completions")
    async def complete(request: Request) -> Any:
        try:
            body = await request.json()
        except ValueError:
            return JSONResponse({"error": "not JSON"}, 400)
        seen.append(body)
        if not body.get("stream"):
            served.version += body.get("swap", 0)
            return {"choices": []}

        async def events() -> AsyncIterator[str]:
            yield 'data: {"n": 1}\n\ndata: {"n"'  # the split between two parts may fall anywhere
            served.version += 1
            yield ": 2}\n\n: comment\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app.add_middleware(stamp.Stamp, served=served)
    return app, seen


def test_a_body_is_stamped_and_the_request_salted() -> None:
    app, seen = openai(Served())
    answer = call(app, "POST", "/v1/completions", json={"prompt": "x", "swap": 1, "cache_salt": "mine"})
    assert answer.json() == {"choices": [], "errata": {"version_min": 3, "version_max": 4}}
    assert answer.headers["X-Errata-Version"] == "3"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert seen[0]["cache_salt"] == "mine|epoch-3"


def test_every_event_of_a_stream_is_stamped() -> None:
    app, _ = openai(Served())
    answer = call(app, "POST", "/v1/completions", json={"stream": True})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [json.loads(event)["errata"] for event in events[:2]] == [
        {"version_min": 3, "version_max": 3},
        {"version_min": 3, "version_max": 4},
    ]
    assert events[2] == "[DONE]"
    assert ": comment" in answer.text


def test_at_least_waits_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "AT_LEAST_TIMEOUT_S", 0.05)
    served = Served()
    app, _ = openai(served)
    assert call(app, "POST", "/v1/completions", json={}, headers={"X-Errata-At-Least": "3"}).status_code == 200
    assert call(app, "POST", "/v1/completions", json={}, headers={"X-Errata-At-Least": "4"}).status_code == 409
    for wrong in ("x", "-1", "1.5", "²"):
        headers = {"X-Errata-At-Least": wrong.encode("utf-8")}
        assert call(app, "POST", "/v1/completions", json={}, headers=headers).status_code == 400
    assert served.at_least == [3, 4]


def test_what_is_not_json_is_left_for_the_engine_to_refuse() -> None:
    app, _ = openai(Served())
    answer = call(app, "POST", "/v1/completions", content=b"{")
    assert (answer.status_code, answer.headers["X-Errata-Version"]) == (400, "3")


def test_other_posts_that_would_generate_are_not_served() -> None:
    app, _ = openai(Served())
    assert call(app, "POST", "/v1/responses", json={}).status_code == 404
