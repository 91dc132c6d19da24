"""The routes of the service, its keys and its journal on a real port, over a fake backend."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from errata.access_keys import Keys
from serving.api import routes
from serving.api.access import Access
from tests.fakes.backend import Backend


@dataclass(frozen=True)
class Answer:
    """An answer that replaces the application's, which is not called."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "is being restarted", "field": null, "edit": null}}'


@dataclass(frozen=True)
class Cut:
    """A connection that breaks after this many parts of the answer; the application does its work."""

    num_parts: int = 0


@dataclass
class Troubles:
    """ASGI middleware: troubles of the next requests whose path begins with `path`, one after another."""

    app: Any
    path: str = ""
    coming: deque[Answer | Cut] = field(default_factory=deque)
    seen: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.seen.append((scope["method"], scope["path"]))
        trouble = self.coming.popleft() if self.coming and scope["path"].startswith(self.path) else None
        if isinstance(trouble, Answer):
            headers = [(name.encode(), value.encode()) for name, value in trouble.headers.items()]
            await send({"type": "http.response.start", "status": trouble.code, "headers": headers})
            return await send({"type": "http.response.body", "body": trouble.body.encode()})
        if trouble is None:
            return await self.app(scope, receive, send)
        await self._cut(trouble, scope, receive, send)

    async def _cut(self, cut: Cut, scope: Any, receive: Any, send: Any) -> None:
        left = cut.num_parts

        async def limited(message: Any) -> None:
            nonlocal left
            if message["type"] == "http.response.start":
                return await send(message)
            if left == 0:
                raise ConnectionAbortedError("cut by the test")
            left -= 1
            await send({**message, "more_body": True})

        await self.app(scope, receive, limited)


@dataclass(frozen=True)
class Service:
    """A running service with its backend and its troubles."""

    url: str
    backend: Backend
    troubles: Troubles

    def make(self) -> None:
        """Make the held edits, from another thread than the service's."""

        async def made() -> None:
            self.backend.held = False
            self.backend.make()

        asyncio.run_coroutine_threadsafe(made(), self.backend.loop).result(timeout=30)

    @property
    def queued(self) -> list[dict[str, Any]]:
        """All edits that were queued, oldest first."""
        return [entry.edit for entry in reversed(self.backend.journal.newest(10_000))]


@contextmanager
def serving(directory: Path, keys: Path | None = None, max_queue: int = 10_000) -> Iterator[Service]:
    """Serve on a free port until the end of the block."""
    backend, app = Backend(directory, max_queue), FastAPI()
    routes.install(app, backend)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "errata"}]}

    @app.post("/v1/completions")
    async def complete(request: Request) -> dict[str, Any]:
        prompts = json.loads(await request.body())["prompt"]
        stamp = {"version_min": backend.head, "version_max": backend.head}
        return {"choices": [{"text": f" {prompt}!"} for prompt in prompts], "errata": stamp}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, Any]:
        question = json.loads(await request.body())["messages"][-1]["content"]
        stamp = {"version_min": backend.head, "version_max": backend.head}
        return {"choices": [{"message": {"role": "assistant", "content": f"{question}?!"}}], "errata": stamp}

    troubles = Troubles(Access(app, None if keys is None else Keys.load(keys)))
    with running(uvicorn.Config(troubles, host="127.0.0.1", port=0, log_level="critical")) as url:
        yield Service(url, backend, troubles)
    backend.journal.close()


@contextmanager
def running(config: uvicorn.Config) -> Iterator[str]:
    """Run uvicorn in a thread until the end of the block; yields the address."""
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
