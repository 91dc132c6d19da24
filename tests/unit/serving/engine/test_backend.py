"""The backend of the routes: comparisons of versions within their limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from errata.history.budget import WalkStopped, WalkTooLong
from errata.ledger import Ledger
from errata.local.service_limits import ServiceLimits
from serving.engine import backend
from serving.engine.backend import ServiceBackend


def backend_of(ledger: Ledger, worker: Any = None, **limits: int) -> ServiceBackend:
    return ServiceBackend(worker, ledger, None, ServiceLimits(**limits))  # type: ignore[arg-type]


def test_a_diff_has_a_budget(grown: Ledger) -> None:
    compared = backend_of(grown, max_walk_versions=3)
    assert asyncio.run(compared.diff(6, 9))["common"] == 6
    with pytest.raises(WalkTooLong, match="max_walk_versions=3"):
        asyncio.run(compared.diff(5, 9))


def test_a_diff_stops_when_its_caller_is_gone(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    walking, ended = threading.Event(), []

    def endless(ledger: Ledger, a: int, b: int, budget: Any) -> None:
        walking.set()
        try:
            while True:
                budget.step()
        except WalkStopped:
            ended.append(True)
            raise

    monkeypatch.setattr(backend, "diff", endless)

    async def gone() -> None:
        compared = backend_of(grown)
        asked = asyncio.create_task(compared.diff(0, 9))
        assert await asyncio.to_thread(walking.wait, 10)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert ended and not compared._comparing.locked()

    asyncio.run(gone())


def test_a_blame_is_cancelled_at_the_worker_when_its_caller_is_gone(grown: Ledger) -> None:
    class Answer:
        def __init__(self) -> None:
            self.is_cancelled = False

        def __await__(self) -> Any:
            return asyncio.sleep(60).__await__()

        def cancel(self) -> None:
            self.is_cancelled = True

    class Worker:
        answer = Answer()

        def __getattr__(self, name: str) -> Any:
            return self

        def remote(self, *_: Any) -> Answer:
            return self.answer

    async def gone() -> None:
        asked = asyncio.create_task(backend_of(grown, Worker()).blame("p", 1))
        await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert Worker.answer.is_cancelled

    asyncio.run(gone())


class Streaming:
    """The handle of a worker whose stream never ends; it notes when the stream is cancelled."""

    def __init__(self) -> None:
        self.num_sent, self.is_cancelled, self.events = 0, False, self

    def options(self, stream: bool) -> Streaming:
        return self

    def remote(self) -> Streaming:
        return self

    async def __aiter__(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        while True:
            self.num_sent += 1
            yield "edit", {"id": str(self.num_sent), "state": "queued"}

    def cancel(self) -> None:
        self.is_cancelled = True


def test_a_stream_ends_after_its_bytes_so_that_a_silent_client_fills_no_memory(grown: Ledger) -> None:
    async def heard() -> list[tuple[str, dict[str, Any]]]:
        return [event async for event in backend_of(grown, worker, max_stream_bytes=4_000).events()]

    worker = Streaming()
    found = asyncio.run(heard())
    assert found[-1][0] == "lagged" and "max_stream_bytes=4000" in found[-1][1]["message"]
    assert 50 < len(found) == worker.num_sent < 150 and worker.is_cancelled


def test_a_stream_is_cancelled_when_its_client_goes(grown: Ledger) -> None:
    async def heard() -> None:
        events = backend_of(grown, worker).events()
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    worker = Streaming()
    asyncio.run(heard())
    assert worker.is_cancelled
