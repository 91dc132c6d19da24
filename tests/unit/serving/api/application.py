"""Our routes and the console behind the access middleware and the version stamp, over a fake backend."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from pydantic import BaseModel

from errata.access_keys import Keys
from errata.local.service_limits import ServiceLimits
from serving.api import routes
from serving.api.access import Access
from serving.api.version_stamp import VersionStamp
from serving.console import routes as console
from tests.fakes.backend import Backend

LIMITS = ServiceLimits(max_body_bytes=1024**2)


class CompletionIn(BaseModel):
    prompt: str


def application(folder: Path, keys: Keys | None, limits: ServiceLimits = LIMITS) -> FastAPI:
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
    console.install(app)
    app.add_middleware(VersionStamp, served=backend)
    app.add_middleware(Access, keys=keys, limits=limits)
    return app


def call(app: Any, method: str, path: str, bearer: str | None = None, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer is not None else {}
    headers |= options.pop("headers", {})

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.request(method, path, headers=headers, **options)

    return asyncio.run(ask())
