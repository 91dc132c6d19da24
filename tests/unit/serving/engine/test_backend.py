"""The routes' backend of a replica: what a caller without a key learns, refusals of the edit worker, and limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from errata.history.budget import WalkStopped, WalkTooLong
from errata.ledger import Ledger
from errata.local.service_limits import ServiceLimits
from serving.engine import backend
from serving.engine.backend import ServiceBackend
from serving.worker.journal import JournalFailed, UnknownEdit
from serving.worker.refusals import RefusedCall


class Handle:
    """The edit worker's handle: every method answers what `answer` is, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, list[str]()

    def __getattr__(self, method: str) -> Any:
        async def remote(*_: Any) -> Any:
            self.asked.append(method)
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return SimpleNamespace(remote=remote)


class Replica:
    version = 3

    async def status(self) -> dict[str, Any]:
        return {"version": self.version}

    async def exposition(self) -> tuple[str, int, str]:
        return "r", self.version, "errata_replica_version 3.0\n"


def backend_of(answer: Any, head: int = 3) -> ServiceBackend:
    return ServiceBackend(Handle(answer), SimpleNamespace(head=head), Replica())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stalled", "reasons"),
    [
        (None, []),
        ("OSError: [Errno 28] No space left on device: '/mnt/errata/ledger/versions'", ["waits for the disk"]),
        (TimeoutError(), ["does not answer"]),
        (RefusedCall(JournalFailed("the journal /mnt/errata/x cannot be read")), ["does not answer"]),
    ],
)
def test_a_caller_without_a_key_learns_no_path_and_no_error(stalled: Any, reasons: list[str]) -> None:
    found = asyncio.run(backend_of(stalled).unready())
    assert len(found) == len(reasons) and all(part in reason for part, reason in zip(reasons, found, strict=True))
    assert not any(text in " ".join(found) for text in ("/mnt", "Errno", "Error"))


def test_a_replica_behind_the_head_is_not_ready() -> None:
    (reason,) = asyncio.run(backend_of(None, head=4).unready())
    assert reason == "this replica serves version 3, the head is 4"


def test_the_worker_is_asked_once_however_often_a_caller_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = backend_of("OSError: full")

    async def many() -> None:
        found = await asyncio.gather(*(asked.unready() for _ in range(50)))
        assert len(asked.worker.asked) == 1 and all(len(reasons) == 1 for reasons in found)
        monkeypatch.setattr(backend, "READY_PERIOD_S", 0.0)
        await asked.unready()
        assert len(asked.worker.asked) == 2

    asyncio.run(many())


def test_refusals_of_the_worker_are_raised_here() -> None:
    refusing = backend_of(RefusedCall(UnknownEdit("no edit")))
    for call in (
        refusing.edit_status("x"),
        refusing.revert(["x"], [], "auto", None, None),
        refusing.submit([], False, None, None),
    ):
        with pytest.raises(UnknownEdit, match="no edit"):
            asyncio.run(call)  # type: ignore[arg-type]


def test_status_and_metrics_are_the_replicas_own_while_the_worker_refuses() -> None:
    refusing = backend_of(RefusedCall(JournalFailed("the journal cannot be read")))
    assert asyncio.run(refusing.service_status())["worker"] == {"error": "JournalFailed"}
    assert "errata_replica_version" in asyncio.run(refusing.all_metrics())


def limited_backend(ledger: Ledger, worker: Any = None, **limits: int) -> ServiceBackend:
    return ServiceBackend(worker, ledger, None, ServiceLimits(**limits))  # type: ignore[arg-type]


def test_a_diff_has_a_budget(grown: Ledger) -> None:
    compared = limited_backend(grown, max_walk_versions=3)
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
        compared = limited_backend(grown)
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
        asked = asyncio.create_task(limited_backend(grown, Worker()).blame("p", 1))
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
        return [event async for event in limited_backend(grown, worker, max_stream_bytes=4_000).events()]

    worker = Streaming()
    found = asyncio.run(heard())
    assert found[-1][0] == "lagged" and "max_stream_bytes=4000" in found[-1][1]["message"]
    assert 50 < len(found) == worker.num_sent < 150 and worker.is_cancelled


def test_a_stream_is_cancelled_when_its_client_goes(grown: Ledger) -> None:
    async def heard() -> None:
        events = limited_backend(grown, worker).events()
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    worker = Streaming()
    asyncio.run(heard())
    assert worker.is_cancelled
