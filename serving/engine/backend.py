"""The backend of the HTTP routes: reads from the replica's ledger, and passes everything that writes on to the edit worker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol, cast

from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from errata.history.budget import WalkBudget
from errata.history.diff import diff
from errata.ledger import Ledger, Version
from errata.local.service_limits import ServiceLimits
from errata.text.dialogue import Prompt
from serving.api.routes import versions_page
from serving.metrics import merged
from serving.worker.proposals import ProposalQuery
from serving.worker.refusals import UNANSWERED, Busy, answer_of
from serving.worker.walks import walked

READY_TIMEOUT_S = 2.0
READY_PERIOD_S = 1.0  # The worker is asked at most so often, however often a caller without a key asks.
WORKER_TIMEOUT_S = 10.0

Event = tuple[str, dict[str, Any]]


class Replica(Protocol):
    """The replica as its backend sees it; `version` is the served version."""

    version: int

    async def status(self) -> dict[str, Any]: ...

    async def exposition(self) -> tuple[str, int, str]: ...


class ServiceBackend:
    """The routes' `Backend` over the edit worker's handle, the ledger and one replica; `by` is the name of a caller's key."""

    def __init__(self, worker: DeploymentHandle, ledger: Ledger, replica: Replica, limits: ServiceLimits | None = None) -> None:
        self.worker, self.ledger, self.replica, self.limits = worker, ledger, replica, limits or ServiceLimits()
        self._comparing = asyncio.Lock()
        self._asking: asyncio.Task[str | None] | None = None
        self._asked_at = 0.0

    async def submit(self, edits: list[dict[str, Any]], wait: bool, key: str | None, by: str | None) -> list[dict[str, Any]]:
        return await answer_of(self.worker.submit.remote(edits, wait, key, by))

    async def dry_run(self, edits: list[dict[str, Any]]) -> dict[str, Any]:
        """Try edits; the worker stops when the caller is gone."""
        return await _stopped_with_caller(self.worker.dry_run.remote(edits))

    async def propose(self, edits: list[dict[str, Any]], key: str | None, by: str | None) -> list[dict[str, Any]]:
        return await answer_of(self.worker.propose.remote(edits, key, by))

    async def proposals(self, asked: ProposalQuery) -> dict[str, Any]:
        return await answer_of(self.worker.proposals.remote(asked))

    async def proposal(self, id: str) -> dict[str, Any]:
        return await answer_of(self.worker.proposal.remote(id))

    async def decide(self, id: str, approve: bool, by: str | None, reason: str | None) -> dict[str, Any]:
        return await answer_of(self.worker.decide.remote(id, approve, by, reason))

    async def edits(self, state: str | None, limit: int, before: int | None, subject: str | None) -> dict[str, Any]:
        return await answer_of(self.worker.edits.remote(state, limit, before, subject))

    async def edit_status(self, id: str) -> dict[str, Any]:
        return await answer_of(self.worker.edit_status.remote(id))

    def edit_events(self, id: str) -> AsyncIterator[Event]:
        return self._stream(self.worker.options(stream=True).edit_events, id)

    def events(self) -> AsyncIterator[Event]:
        return self._stream(self.worker.options(stream=True).events)

    async def _stream(self, method: DeploymentHandle, *arguments: Any) -> AsyncIterator[Event]:
        """Yield what the worker yields, up to the limit of a stream, and cancel it when the consumer stops.

        Ray Serve's streams have no back-pressure: everything is taken from the worker and kept for the client, who may not
        read. A stream is therefore bounded as a whole, and ends after an event `lagged`.
        """
        answers, left, limit = _streamed(method, *arguments), self.limits.max_stream_bytes, self.limits.max_stream_bytes
        async with aclosing(answers):
            async for kind, data in answers:
                left -= len(kind) + len(json.dumps(data))
                if left < 0:
                    message = f"{limit:,} bytes were sent on this stream (max_stream_bytes={limit}); connect again"
                    yield "lagged", {"message": message}
                    return
                yield kind, data

    async def rollback(self, version: int, by: str | None, expected_head: int | None) -> dict[str, Any]:
        return await answer_of(self.worker.rollback.remote(version, by, expected_head))

    async def revert(
        self, edits: list[str], versions: list[int], mode: str, by: str | None, expected_head: int | None
    ) -> dict[str, Any]:
        return await answer_of(self.worker.revert.remote(edits, versions, mode, by, expected_head))

    async def dry_run_revert(
        self, edits: list[str], versions: list[int], mode: str, expected_head: int | None
    ) -> dict[str, Any]:
        """Try a revert; the worker stops when the caller is gone."""
        return await _stopped_with_caller(self.worker.dry_run_revert.remote(edits, versions, mode, expected_head))

    async def blame(self, prompt: Prompt, max_tokens: int) -> dict[str, Any]:
        """Trace an answer; the worker stops when the caller is gone."""
        return await _stopped_with_caller(self.worker.blame.remote(prompt, max_tokens))

    async def diff(self, low: int, high: int) -> dict[str, Any]:
        """Compare two versions; one call at a time, since it reads every version in between. Raises `Busy`.

        A call that is cancelled stops the walk. Raises `WalkTooLong` beyond the limits of a walk.
        """
        if self._comparing.locked():
            raise Busy("this replica is comparing other versions; ask again when that is done")
        async with self._comparing:
            budget = WalkBudget(self.limits.max_walk_versions, self.limits.max_walk_s)
            return await walked(partial(diff, self.ledger, low, high), budget)

    async def unready(self) -> list[str]:
        """Return the reasons why this service is not ready; none if it is.

        They name no path and no error, because asking needs no key; the status has both.
        """
        reasons = []
        if self.replica.version != self.ledger.head:
            reasons.append(f"this replica serves version {self.replica.version}, the head is {self.ledger.head}")
        if self._asking is None or time.monotonic() - self._asked_at > READY_PERIOD_S:
            self._asking, self._asked_at = asyncio.create_task(self._worker_fault()), time.monotonic()
        fault = await asyncio.shield(self._asking)
        return [*reasons, fault] if fault is not None else reasons

    async def _worker_fault(self) -> str | None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                stalled = await answer_of(self.worker.ready.remote())
        except UNANSWERED:
            return "the edit worker does not answer"
        return None if stalled is None else "the edit worker waits for the disk (`stalled` in GET /v1/status says why)"

    async def all_metrics(self) -> str:
        """Merge the metrics of all replicas and the worker; those of this replica alone while the worker does not answer."""
        try:
            async with asyncio.timeout(WORKER_TIMEOUT_S):
                return await asyncio.to_thread(merged, await answer_of(self.worker.expositions.remote()))
        except UNANSWERED:
            replica, _, text = await self.replica.exposition()
            return await asyncio.to_thread(merged, {replica: text})

    async def service_status(self) -> dict[str, Any]:
        """Return the worker's status of all parts; this replica's own status alone while the worker does not answer."""
        own = {"head": self.ledger.head, "answered_by": await self.replica.status()}
        try:
            async with asyncio.timeout(WORKER_TIMEOUT_S):
                return own | await answer_of(self.worker.status.remote())
        except UNANSWERED as fault:
            return own | {"worker": {"error": f"{type(fault).__name__}"}}

    def versions(self, limit: int, before: int | None) -> dict[str, Any]:
        found = self.ledger.newest_first(before)
        return versions_page(self.ledger.head, self.ledger.newest, found, limit, self.limits.max_page_bytes)

    def version_with_edits(self, number: int) -> Version:
        return self.ledger.version(number)


async def _stopped_with_caller(answer: DeploymentResponse[Any] | DeploymentResponseGenerator[Any]) -> Any:
    """Await an answer of the worker, and cancel its call if the caller is gone."""
    try:
        return await answer_of(answer)
    except asyncio.CancelledError:
        answer.cancel()
        raise


async def _streamed(method: DeploymentHandle, *arguments: Any) -> AsyncGenerator[Event]:
    """Yield what another deployment yields, and cancel it when the consumer stops."""
    answers = cast(DeploymentResponseGenerator[Any], method.remote(*arguments))
    try:
        async for answer in answers:
            yield answer
    finally:
        answers.cancel()
