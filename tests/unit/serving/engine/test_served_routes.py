"""The routes of a replica on vLLM's own application: those for developers are not served, and a long prompt is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from errata.ledger import Ledger
from errata.testbed.language_model import make_model, make_tokenizer, save
from errata.text.dialogue import Dialogue
from serving.api.access import UNLISTED, role_for
from tests.conftest import SHAPE
from tests.tiny_models import WORLD
from tests.tokenizers_under_test import TEMPLATES
from tests.unit.hostile import DEVELOPMENT

engine = pytest.importorskip("tests.fakes.engine")  # vLLM

LIMIT = 8192


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a chat model with a context of `LIMIT` tokens."""
    folder = tmp_path_factory.mktemp("long")
    shape = replace(SHAPE, max_tokens=LIMIT)
    tokenizer = make_tokenizer(WORLD, shape)
    tokenizer.chat_template = TEMPLATES["chatml"]
    save(make_model(shape, len(tokenizer), seed=0), tokenizer, folder)
    return folder


@pytest.fixture(autouse=True)
def in_development(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment in which vLLM installs all of its routes."""
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")


@asynccontextmanager
async def asked(ledger: Ledger, model: Path) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """Start a replica whose engine has vLLM's own reader of requests; yields it with a client of its application."""
    async with engine.started(ledger, model=str(model)) as replica:
        replica.engine.read_requests(replica.args)
        app = await replica.__serve_build_asgi_app__()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            yield replica, client


def routes_of_vllm(replica: Any) -> list[tuple[str, str]]:
    """Return all routes of vLLM's application, as (method, path)."""
    from vllm.entrypoints.launchers.app import build_app

    app = build_app(replica.args, supported_tasks=("generate",), model_config=replica.engine.model_config)
    return [(method, route.path) for route in app.router.routes for method in getattr(route, "methods", None) or ()]


def test_no_route_of_vllm_is_served_that_is_not_listed(grown: Ledger, checkpoint: Path) -> None:
    async def all_asked() -> None:
        async with asked(grown, checkpoint) as (replica, client):
            routes = routes_of_vllm(replica)
            others = [route for route in routes if role_for(*route) == UNLISTED]
            assert set(DEVELOPMENT) <= {path for _, path in others}
            before = list(replica.engine.seen)
            for method, path in others:
                found = await client.request(method, path, json={})
                assert found.status_code in (404, 405), (method, path)
            assert replica.engine.seen == before, "the engine was asked nothing"

    asyncio.run(all_asked())


@pytest.mark.parametrize(
    ("path", "body", "length"),
    [
        ("/v1/completions", {"prompt": [5] * 9001}, "9001"),
        # vLLM reads no more of a text than shows that it is too long.
        ("/v1/completions", {"prompt": " ".join(["the"] * 9001)}, f"at least {LIMIT + 1}"),
        ("/v1/chat/completions", {"messages": Dialogue.of(" ".join(["the"] * 9001)).to_json()}, f"at least {LIMIT + 1}"),
    ],
    ids=["tokens", "text", "chat"],
)
def test_a_prompt_of_9001_tokens_is_refused_with_its_length_and_the_limit(
    grown: Ledger, checkpoint: Path, path: str, body: dict[str, Any], length: str
) -> None:
    async def all_asked() -> None:
        async with asked(grown, checkpoint) as (_, client):
            refused = await client.post(path, json={"model": "errata", "max_tokens": 1, **body})
            message = refused.json()["error"]["message"]
            assert refused.status_code == 400 and f"context length is {LIMIT} tokens" in message and length in message

    asyncio.run(all_asked())
