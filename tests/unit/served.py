"""The service's own routes, keys and journal on a real port; instead of a model, a backend that follows rules."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from errata.access_keys import Keys
from errata.edit import Code, Edit, EditRejected
from errata.ledger import UnknownVersion, Version
from serving.api import routes
from serving.api.access import Access
from serving.worker.events import EventBus
from serving.worker.journal import Journal

UNQUEUED, UNMADE = "too long", "unlearnable"  # targets that are refused before they are queued, and when they are made


def version(number: int, edits: Sequence[dict[str, Any]] = ()) -> Version:
    made = tuple(Edit.from_json(edit) for edit in edits)
    parent = None if number == 0 else number - 1
    card = {"efficacy": 0.5, "num_edits": len(made), "method": "free"}
    return Version(number, parent, "Toy", "", "f", "2026-01-01", made, card, 4096, {"m": 1}, {"m": 0.5}, Path())


class Backend:
    """Each post is one version, made at once, or by `make` after it was `held`. Answers have the shapes of the real ones."""

    def __init__(self, directory: Path, max_queue: int = 10_000) -> None:
        self.journal, self.feed, self.max_queue = Journal(directory / "journal.sqlite"), EventBus(), max_queue
        self.chain, self.head, self.held, self.reasons = [version(0)], 0, False, list[str]()
        self.posts: list[tuple[str | None, list[dict[str, Any]], bool]] = []
        self.late: dict[str, str] = {}  # what a rollback and a revert say of replicas that are late

    async def submit(self, edits: list[dict[str, Any]], wait: bool, key: str | None, by: str | None) -> list[dict[str, Any]]:
        self.posts.append((key, edits, wait))
        self.loop = asyncio.get_running_loop()
        for index, edit in enumerate(edits):
            if edit["target"] == UNQUEUED:
                raise EditRejected("has 99 tokens", edit=index, field="target", code=Code.EDITOR_FAILED)
        ids = self.journal.submit(edits, key, by, limit=self.max_queue)
        for id in ids:
            self.tell(id)
        while self.held and wait:
            await asyncio.sleep(0.01)
        if not self.held:
            self.make()
        return [self.journal.get(id).to_json() for id in ids]

    def tell(self, id: str) -> None:
        self.feed.tell("edit", self.journal.get(id).to_json())

    def make(self) -> None:
        while entries := self.journal.take(1000):
            for entry in entries:
                self.tell(entry.id)
            good = [entry for entry in entries if entry.edit["target"] != UNMADE]
            for entry in entries:
                if entry not in good:
                    self.journal.reject(entry.id, "it would break the model", "target")
            if good:
                self.chain.append(version(len(self.chain), [entry.edit for entry in good]))
                self.journal.finish([entry.id for entry in good], len(self.chain) - 1)
                self.move(len(self.chain) - 1)
                self.feed.tell("version", routes.version_json(self.chain[-1], with_edits=False))
            for entry in entries:
                self.tell(entry.id)

    def move(self, number: int) -> None:
        before, self.head = self.head, number
        self.feed.tell("head", {"head": number, "before": before})

    async def edits(self, state: str | None, limit: int, before: int | None) -> dict[str, Any]:
        found = self.journal.newest(limit + 1, state, before)
        shown = found[:limit]
        return {"edits": [entry.to_json() for entry in shown], "next": shown[-1].seq if len(found) > limit else None}

    async def edit_status(self, id: str) -> dict[str, Any]:
        return self.journal.get(id).to_json()

    async def edit_events(self, id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        with self.feed.listener([id]) as listener:
            entry = self.journal.get(id)
            yield entry.state, entry.to_json()
            if entry.is_settled:
                return
            async for event in listener:
                yield event.data["state"], event.data
                if event.data["state"] in ("applied", "rejected"):
                    return

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        with self.feed.listener() as listener:
            async for event in listener:
                yield event.kind, event.data

    async def rollback(self, version: int, by: str | None) -> dict[str, Any]:
        self.version_with_edits(version)
        self.move(version)
        return {"version": version, "swap_ms": 12.5, **self.late}

    async def revert(self, edits: list[str], versions: list[int], mode: str, by: str | None) -> dict[str, Any]:
        ids = edits + [edit.id for number in versions for edit in self.version_with_edits(number).edits if edit.id]
        for id in ids:
            self.journal.get(id)
        self.chain.append(version(len(self.chain)))
        self.journal.revert(ids, len(self.chain) - 1)
        self.move(len(self.chain) - 1)
        answers = [{"prompt": "p", "target": "t", "was": "first", "said": "second", "says": "third"}]
        card = {"retention": 0.75, "reverted_answers": answers, "warnings": []}
        mode = "replay" if mode == "auto" else mode
        return {"version": self.head, "mode": mode, "reverted": ids, **self.late, "scorecard": card}

    async def blame(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        said = {"prompt": prompt, "num_asked": 3}
        if prompt == "unchanged":
            return said | {"version": None, "before": None, "after": "so", "edits": []}
        edits = [edit.to_json() for edit in self.chain[-1].edits]
        return said | {"version": self.head, "before": "cat", "after": "dog", "edits": edits}

    async def diff(self, low: int, high: int) -> dict[str, Any]:
        one, other = self.version_with_edits(low), self.version_with_edits(high)
        added = [edit.to_json() for edit in other.edits]
        return {
            "from": low,
            "to": high,
            "common": min(low, high),
            "added": added,
            "removed": [],
            "norms": {"layers.3.down_proj": 1.25},
            "scorecard": {"efficacy": [one.scorecard["efficacy"], None]},
        }

    async def unready(self) -> list[str]:
        return self.reasons

    async def all_metrics(self) -> str:
        return ""

    async def service_status(self) -> dict[str, Any]:
        replicas = [{"replica": name, "pid": 7, "version": 0, "intact": name == "a"} for name in ("a", "b")]
        return {
            "head": self.head,
            "newest": len(self.chain) - 1,
            "queue": {"depth": self.journal.depth, "age_s": self.journal.age_s, "limit": self.max_queue},
            "stalled": None,
            "replicas": replicas,
            "timings": [{"version": 1, "num_edits": 2, "swap_ms": 61.234}],
            "mirror": {"version": 1, "error": None},
            "worker": {"pid": 8, "editor": "Toy"},
        }

    def versions(self) -> tuple[int, list[Version]]:
        return self.head, list(self.chain)

    def version_with_edits(self, number: int) -> Version:
        if number >= len(self.chain):
            raise UnknownVersion(f"there is no version {number}")
        return self.chain[number]


@dataclass(frozen=True)
class Answer:
    """Instead of what the application would say; it is not asked."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "is being restarted", "field": null, "edit": null}}'


@dataclass(frozen=True)
class Cut:
    """The application does its work, and the connection breaks after so many parts of its answer."""

    num_parts: int = 0


@dataclass
class Troubles:
    """ASGI middleware: what happens to the next requests whose path begins so, one after the other."""

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
                raise ConnectionAbortedError("as the test wants it")
            left -= 1
            await send({**message, "more_body": True})

        await self.app(scope, receive, limited)


@dataclass(frozen=True)
class Service:
    url: str
    backend: Backend
    troubles: Troubles

    def make(self) -> None:
        """Make what is held, from another thread than the service's."""

        async def made() -> None:
            self.backend.held = False
            self.backend.make()

        asyncio.run_coroutine_threadsafe(made(), self.backend.loop).result(timeout=30)

    @property
    def queued(self) -> list[dict[str, Any]]:
        """All edits that were ever queued, oldest first."""
        return [entry.edit for entry in reversed(self.backend.journal.newest(10_000))]


@contextmanager
def serving(directory: Path, keys: Path | None = None, max_queue: int = 10_000) -> Iterator[Service]:
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

    troubles = Troubles(Access(app, None if keys is None else Keys.load(keys)))
    server = uvicorn.Server(uvicorn.Config(troubles, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Service(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", backend, troubles)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
        backend.journal.close()
