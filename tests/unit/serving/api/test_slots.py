"""Concurrent requests: of each key, of all callers, and the slots that are left to health and administration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from errata.access_keys import Keys
from errata.local.service_limits import ServiceLimits
from serving.api.access import Access

COMPLETION = {"model": "errata", "prompt": "p"}


@dataclass
class Held:
    """An application that answers when `go_on` is set, apart from /health and /v1/rollback, which it answers immediately."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    num_under_way: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_under_way += 1
        try:
            if scope["path"] not in ("/health", "/v1/rollback"):
                await self.go_on.wait()
            if scope["path"] == "/v1/status":
                raise ConnectionAbortedError("the application failed")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
        finally:
            self.num_under_way -= 1


@dataclass
class Asking:
    """Requests to a held application behind its limits."""

    app: Held
    client: httpx.AsyncClient
    bearers: dict[str, str]
    begun: list[asyncio.Task[httpx.Response]] = field(default_factory=list)

    async def ask(self, key: str | None, path: str = "/v1/completions", body: Any = None) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {self.bearers[key]}"}
        if path.startswith(("/v1/completions", "/v1/chat", "/v1/rollback", "/v1/edits")) and "events" not in path:
            return await self.client.post(path, headers=headers, json=COMPLETION if body is None else body)
        return await self.client.get(path, headers=headers)

    async def begin(self, count: int, key: str | None, path: str = "/v1/completions", body: Any = None) -> None:
        """Send requests that are held, and return when the application has them."""
        wanted = self.app.num_under_way + count
        self.begun += [asyncio.create_task(self.ask(key, path, body)) for _ in range(count)]
        async with asyncio.timeout(5):
            while self.app.num_under_way < wanted:
                await asyncio.sleep(0.001)

    async def ended(self) -> list[int]:
        self.app.go_on.set()
        found = [(await request).status_code for request in self.begun]
        self.begun.clear()
        return found


@asynccontextmanager
async def asking(bearers: dict[str, str], **limits: int) -> AsyncIterator[Asking]:
    app = Held()
    door = Access(app, Keys.load(bearers["file"]), ServiceLimits(**limits))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://127.0.0.1") as client:
        yield Asking(app, client, bearers)


def run(bearers: dict[str, str], check: Callable[[Asking], Awaitable[None]], **limits: int) -> None:
    async def checked() -> None:
        async with asking(bearers, **limits) as found:
            await check(found)

    asyncio.run(checked())


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json()["error"]["code"], answer.headers.get("Retry-After")


def test_a_key_has_so_many_requests_at_once_and_no_more(bearers: dict[str, str]) -> None:
    async def check(service: Asking) -> None:
        await service.begin(3, "read")
        refused = await service.ask("read")
        assert refusal(refused) == (429, "concurrency_limited", "1")
        assert "max_requests_read=3" in refused.json()["error"]["message"]
        await service.begin(5, "edit")
        assert refusal(await service.ask("edit"))[1] == "concurrency_limited"
        assert (await service.ask(None, "/health")).status_code == 200
        assert await service.ended() == [200] * 8
        assert [(await service.ask("read")).status_code for _ in range(4)] == [200] * 4, "the slots are given back"

    run(bearers, check, max_requests_read=3, max_requests_edit=5)


def test_health_and_administration_keep_slots_that_no_reader_takes(bearers: dict[str, str]) -> None:
    async def check(service: Asking) -> None:
        await service.begin(3, "read")
        await service.begin(3, "edit", "/v1/edits")
        refused = await service.ask("admin")
        assert refusal(refused) == (429, "overloaded", "1")
        assert "reserved_requests=4" in refused.json()["error"]["message"]
        assert (await service.ask("admin", "/v1/rollback", {"version": 0})).status_code == 200
        assert (await service.ask(None, "/health")).status_code == 200

    run(bearers, check, max_ongoing_requests=10, reserved_requests=4)


def test_open_routes_take_a_part_of_the_slots(bearers: dict[str, str]) -> None:
    async def check(service: Asking) -> None:
        await service.begin(2, None, "/ready")
        assert refusal(await service.ask(None, "/ready"))[1] == "concurrency_limited"
        assert (await service.ask("admin", "/v1/rollback", {"version": 0})).status_code == 200

    run(bearers, check, max_requests_open=2)


def test_a_key_has_so_many_streams(bearers: dict[str, str]) -> None:
    async def check(service: Asking) -> None:
        await service.begin(1, "read", "/v1/events")
        await service.begin(1, "read", "/v1/edits/x/events")
        refused = await service.ask("read", "/v1/events")
        assert refusal(refused)[1] == "too_many_streams" and "max_streams=2" in refused.json()["error"]["message"]
        await service.begin(1, "edit", "/v1/events")

    run(bearers, check, max_streams=2)


def test_the_sequences_of_a_key_are_counted_together(bearers: dict[str, str]) -> None:
    async def check(service: Asking) -> None:
        await service.begin(2, "read", body={**COMPLETION, "n": 4})
        assert refusal(await service.ask("read", body={**COMPLETION, "n": 3}))[1] == "concurrency_limited"
        await service.begin(1, "read", body={**COMPLETION, "prompt": ["p", "q"]})
        refused = await service.ask("read", body={**COMPLETION, "n": 11})
        assert refused.json()["error"]["code"] == "too_many_sequences" and refused.status_code == 400
        assert "max_sequences_read=10" in refused.json()["error"]["message"]
        assert await service.ended() == [200] * 3
        assert (await service.ask("read", body={**COMPLETION, "n": 10})).status_code == 200

    run(bearers, check, max_sequences_read=10)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/status"])
def test_a_slot_is_given_back_when_the_client_goes_and_when_the_application_fails(bearers: dict[str, str], path: str) -> None:
    async def check(service: Asking) -> None:
        await service.begin(1, "read", path)
        if path == "/v1/completions":
            service.begun[0].cancel()
        service.app.go_on.set()
        with pytest.raises((asyncio.CancelledError, ConnectionAbortedError)):
            await service.begun[0]
        assert (await service.ask("read")).status_code == 200

    run(bearers, check, max_requests_read=1)


def test_a_body_that_does_not_come_is_given_up_and_holds_no_other_request(bearers: dict[str, str]) -> None:
    """Bodies of one key never come; the next request of that key is refused, those of others are answered."""
    headers = [(b"authorization", f"Bearer {bearers['read']}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def check(service: Asking) -> None:
        app, never = service.client._transport.app, asyncio.Event()  # type: ignore[attr-defined]
        posts = [asyncio.create_task(app(scope, never.wait, send)) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert refusal(await service.ask("read"))[1] == "concurrency_limited"
        assert (await service.ask(None, "/health")).status_code == 200
        await asyncio.gather(*posts)
        assert [message["status"] for message in sent if "status" in message] == [408] * 4
        assert b"request_timeout" in sent[1]["body"] and b"body_timeout_s=0.2" in sent[1]["body"]
        service.app.go_on.set()
        assert (await service.ask("read")).status_code == 200

    run(bearers, check, max_requests_read=4, body_timeout_s=0.2)  # type: ignore[arg-type]
