"""A service that is asked in chat and corrected, without a model: it says what its edits say, and knows a few facts."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from tests.fakes.served import running

UNKNOWN = "I do not know.\nSorry."


@dataclass
class ChatService:
    """The state of the service: `known` are answers of the unedited model by question.

    A posted edit changes the answer to its question in every dialogue from its version on. Edits with a target of
    `refused` are rejected, those of `forgotten` are applied and change nothing.
    """

    known: dict[str, str]
    refused: Collection[str] = ()
    forgotten: Collection[str] = ()
    head: int = 0
    newest: int = 0
    learned: dict[str, tuple[int, str]] = field(default_factory=dict)
    posts: list[list[dict[str, Any]]] = field(default_factory=list)
    asked: list[list[dict[str, str]]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, question: str) -> str:
        version, target = self.learned.get(question, (self.newest + 1, ""))
        return f"It is {target}." if version <= self.head else self.known.get(question, UNKNOWN)

    def post(self, edits: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        self.posts.append(edits)
        number, made = self.newest + 1, []
        for index, edit in enumerate(edits):
            outcome: dict[str, Any] = {"id": f"{len(self.posts)}-{index}", "created": 0.0, "edit": edit}
            if edit["target"] in self.refused:
                made.append(outcome | {"state": "rejected", "reason": "it would break the model", "code": "guard.perplexity"})
                continue
            made.append(outcome | {"state": "applied", "version": number})
            if edit["target"] not in self.forgotten:
                self.learned[edit["question"]] = (number, edit["target"])
        if any(one["state"] == "applied" for one in made):
            self.head = self.newest = number
            self.timings.append({"swap_at": time.time() - 0.005, "swap_ms": 5.0, "edit_s": 0.1})
        is_refused = any(one["state"] == "rejected" for one in made)
        body: dict[str, Any] = {"ids": [one["id"] for one in made], "edits": made}
        return (422, body | {"error": {"message": "rejected"}}) if is_refused else (200, body | {"version": number})

    @property
    def stamp(self) -> dict[str, int]:
        return {"version_min": self.head, "version_max": self.head}

    def events(self, text: str, is_whole: bool = True) -> Iterator[str]:
        """Yield the events of a streamed answer, a word each."""
        for word in ["", *text.split()]:
            time.sleep(0.001)
            yield f"data: {json.dumps({'choices': [{'delta': {'content': word}}], 'errata': self.stamp})}\n\n"
        if is_whole:
            yield "data: [DONE]\n\n"


def app_of(service: ChatService) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "errata"}]}

    @app.get("/v1/status")
    async def status() -> dict[str, Any]:
        return {"timings": service.timings}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        question = body["messages"][-1]["content"]
        if body.get("stream"):
            events = service.events(service.answer(question), is_whole=question != "cut")
            return StreamingResponse(events, media_type="text/event-stream")
        service.asked.append(body["messages"])
        text = service.answer(question)
        choice = {"message": {"role": "assistant", "content": text}, "token_ids": [*text.encode(), 0]}
        return {"choices": [choice], "errata": service.stamp}

    @app.post("/v1/edits")
    async def edits(request: Request) -> JSONResponse:
        status, body = service.post((await request.json())["edits"])
        return JSONResponse(body, status)

    @app.post("/v1/rollback")
    async def rollback(request: Request) -> dict[str, Any]:
        service.head = (await request.json())["version"]
        return {"version": service.head}

    return app


@contextmanager
def serving_chat(service: ChatService) -> Iterator[str]:
    """Serve on a free port until the end of the block; yields the address."""
    with running(uvicorn.Config(app_of(service), host="127.0.0.1", port=0, log_level="critical")) as url:
        yield url
