"""Version stamps of answers, and requests that wait for a version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from serving.api import version_stamp
from serving.api.fired_edits import FiredEdit
from serving.metrics import ReplicaMetrics
from tests.unit.serving.api.application import call


class Served:
    version, running_epoch = 3, 0

    def __init__(self) -> None:
        self.at_least: list[int] = []
        self.metrics = ReplicaMetrics()

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
        if body.get("reads_memory") and (fired := version_stamp.OF_REQUEST.get()) is not None:
            fired.versions.append(served.version)
            served.running_epoch += body["changes_running"]
        if not body.get("stream"):
            served.version += body.get("swap", 0)
            return {"choices": []}

        async def events() -> AsyncIterator[str]:
            yield 'data: {"n": 1}\n\ndata: {"n"'  # the split between two parts may fall anywhere
            served.version += 1
            yield ": 2}\n\n: comment\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app.add_middleware(version_stamp.VersionStamp, served=served)
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


async def decided(edit: FiredEdit | None, after_s: float = 0.0) -> list[FiredEdit]:
    await asyncio.sleep(after_s)
    return [] if edit is None else [edit]


def with_memory(*decisions: FiredEdit | None) -> FastAPI:
    """Make an application whose engine decides on each prompt of a request, later than it was asked."""
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(request: Request) -> Any:
        body, fired = await request.json(), version_stamp.OF_REQUEST.get()
        assert fired is not None
        delays = [0.03, 0.0, 0.01]
        fired.decisions += [asyncio.ensure_future(decided(edit, s)) for edit, s in zip(decisions, delays, strict=False)]
        app.state.seen = fired
        if not body.get("stream"):
            return {"choices": []}

        async def events() -> AsyncIterator[str]:
            yield 'data: {"n": 1}\n\ndata: {"n": 2}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    app.add_middleware(version_stamp.VersionStamp, served=Served())
    return app


def test_an_answer_names_the_edits_that_fired_in_the_order_of_its_prompts() -> None:
    app = with_memory(FiredEdit("a1", 0.93456), None, FiredEdit("b\r\nX: 1", 1.0))
    answer = call(app, "POST", "/v1/completions", json={"prompt": "x"})
    edits = [{"id": "a1", "score": 0.9346}, {"id": "b\r\nX: 1", "score": 1.0}]
    assert answer.json()["errata"] == {"version_min": 3, "version_max": 3, "edits": edits}
    assert answer.headers["X-Errata-Edit"] == "a1;score=0.93, b%0D%0AX:%201;score=1.00"


def test_a_stream_names_the_edits_in_its_header_and_in_the_first_event() -> None:
    answer = call(with_memory(FiredEdit("", 0.9)), "POST", "/v1/completions", json={"stream": True})
    events = [json.loads(line.removeprefix("data: "))["errata"] for line in answer.text.split("\n\n") if line]
    assert [event.get("edits") for event in events] == [[{"id": "", "score": 0.9}], None]
    assert answer.headers["X-Errata-Edit"] == "-;score=0.90"


@pytest.mark.parametrize("stream", [False, True])
def test_edits_that_fire_while_an_answer_is_generated_are_named_as_soon_as_they_are_known(stream: bool) -> None:
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete() -> Any:
        fired = version_stamp.OF_REQUEST.get()
        assert fired is not None

        async def events() -> AsyncIterator[str]:
            yield 'data: {"n": 1}\n\n'
            fired.noted.append(FiredEdit("a", 0.9))
            yield 'data: {"n": 2}\n\n'
            yield 'data: {"n": 3}\n\n'

        if stream:
            return StreamingResponse(events(), media_type="text/event-stream")
        fired.noted.append(FiredEdit("a", 0.9))
        return {"choices": []}

    app.add_middleware(version_stamp.VersionStamp, served=Served())
    answer = call(app, "POST", "/v1/completions", json={"stream": stream})
    texts = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    named = [json.loads(text)["errata"].get("edits") for text in texts]
    assert named == ([None, [{"id": "a", "score": 0.9}], None] if stream else [[{"id": "a", "score": 0.9}]])
    assert answer.headers.get("X-Errata-Edit") == (None if stream else "a;score=0.90")


@pytest.mark.parametrize(("changes_running", "last"), [(0, 3), (1, 4)])
def test_an_answer_is_of_the_version_whose_memory_it_was_read_with(changes_running: int, last: int) -> None:
    served = Served()
    app, _ = openai(served)
    body = {"swap": 1, "reads_memory": True, "changes_running": changes_running}
    answer = call(app, "POST", "/v1/completions", json=body)
    assert answer.json()["errata"] == {"version_min": 3, "version_max": last}
    assert f'errata_completions_total{{code="200",version="{last}"}} 1.0' in served.metrics.exposition()


def test_nothing_is_named_where_nothing_fired() -> None:
    answer = call(with_memory(None), "POST", "/v1/completions", json={"prompt": "x"})
    assert answer.json()["errata"] == {"version_min": 3, "version_max": 3} and "X-Errata-Edit" not in answer.headers
    assert version_stamp.OF_REQUEST.get() is None


def test_the_engine_learns_what_the_body_asks_for() -> None:
    app = with_memory()
    for body, takes in (({}, (True, True)), ({"echo": True}, (True, False)), ({"use_beam_search": True}, (False, False))):
        call(app, "POST", "/v1/completions", json=body)
        assert (app.state.seen.takes_text, app.state.seen.takes_answer) == takes


def test_answers_and_their_tokens_are_counted() -> None:
    served = Served()
    app, _ = openai(served)
    call(app, "POST", "/v1/completions", json={"swap": 1})
    call(app, "POST", "/v1/completions", content=b"{")
    call(app, "POST", "/v1/completions", json={"stream": True})
    text = served.metrics.exposition()
    for line in (
        'errata_completions_total{code="200",version="4"} 1.0',
        'errata_completions_total{code="400",version="4"} 1.0',
        'errata_completions_total{code="200",version="5"} 1.0',
        "errata_spanning_completions_total 2.0",
        "errata_stall_seconds_count 3.0",
    ):
        assert line in text


def test_at_least_waits_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_stamp, "AT_LEAST_TIMEOUT_S", 0.05)
    served = Served()
    app, _ = openai(served)
    assert call(app, "POST", "/v1/completions", json={}, headers={"X-Errata-At-Least": "3"}).status_code == 200
    assert call(app, "POST", "/v1/completions", json={}, headers={"X-Errata-At-Least": "4"}).status_code == 409
    for wrong in ("x", "-1", "1.5", "²"):
        headers = {"X-Errata-At-Least": wrong.encode("utf-8")}
        assert call(app, "POST", "/v1/completions", json={}, headers=headers).status_code == 400
    assert served.at_least == [3, 4]


def test_a_version_that_is_there_already_is_waited_for_only_by_the_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swapping(Served):
        async def admit(self, at_least: int) -> str:
            await asyncio.sleep(60)
            return ""

    monkeypatch.setattr(version_stamp, "AT_LEAST_TIMEOUT_S", 0.05)
    app, _ = openai(Swapping())
    for wanted in ("0", "3"):
        answer = call(app, "POST", "/v1/completions", json={}, headers={"X-Errata-At-Least": wanted})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert "a swap is under way" in answer.json()["error"]["message"]


class Turned(Served):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def admit(self, at_least: int) -> str:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (version_stamp.OutOfRotation(3, 4), 503, "out_of_rotation"),
        (version_stamp.RolledBack(4, 3), 409, "rolled_back"),
        (version_stamp.NotQueued(9, 4), 409, "not_served_yet"),
    ],
)
def test_a_replica_that_cannot_answer_says_so(error: Exception, status: int, code: str) -> None:
    app, seen = openai(Turned(error))
    answer = call(app, "POST", "/v1/completions", json={})
    found = answer.json()["error"]
    assert (answer.status_code, found["code"], found["message"], seen) == (status, code, str(error), [])


def test_what_is_not_json_is_left_for_the_engine_to_refuse() -> None:
    app, _ = openai(Served())
    answer = call(app, "POST", "/v1/completions", content=b"{")
    assert (answer.status_code, answer.headers["X-Errata-Version"]) == (400, "3")
