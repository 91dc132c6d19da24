"""The single writer, as a Serve deployment of one replica: what the generators ask of it. `Maker` does the work."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from errata.edit import Edit, check_edits
from errata.history.revert_selection import RevertRefused
from errata.ledger import Ledger
from errata.ledger.recovery import recover
from serving.logs import event
from serving.metrics import WORKER
from serving.tracing import current_traceparent
from serving.worker.edit_loop import EditLoop
from serving.worker.events import TooManyListeners
from serving.worker.journal import SETTLED, Journal, QueueFull
from serving.worker.live_model import LiveModel, LiveModelOptions
from serving.worker.mlflow_mirror import MlflowMirrorTask

logger = logging.getLogger("ray.serve")

MAX_RETRY_AFTER_S = 60


class Busy(RuntimeError):
    """What is asked for is done once at a time, and under way already."""


@dataclass(frozen=True)
class WorkerOptions:
    """`max_batch` edits at most go into one version, and none waits longer than `batch_window_s` for company; `max_queue`
    may wait, more are refused. The worker gives way to whatever is `nice` less polite, such as engines on the same cores."""

    workshop: LiveModelOptions
    journal: str
    max_batch: int = 16
    batch_window_s: float = 0.02
    max_queue: int = 10_000
    nice: int = 10
    wait_timeout_s: float = 60.0
    mlflow: str | None = None
    mlflow_name: str = "errata"


class EditWorker:
    """Edits are in the journal before `submit` returns; their later states are told to whoever waits or listens."""

    async def __init__(self, options: WorkerOptions) -> None:  # type: ignore[misc]  # Serve awaits it
        self.options = options
        os.nice(options.nice)
        self.journal = await asyncio.to_thread(Journal, options.journal)
        await asyncio.to_thread(_recover, options.workshop.ledger)
        self.shop = await asyncio.to_thread(LiveModel, options.workshop)
        self.outbox = MlflowMirrorTask(self.shop.ledger, options.mlflow, options.mlflow_name)
        self.maker = EditLoop(self.shop, self.journal, self.outbox, options.max_batch, options.batch_window_s)
        self.maker.reconcile()
        # A tokenizer's settings are not for two threads: the editor has the other.
        self._tokenizer, self._checking = copy.deepcopy(self.shop.model.tokenizer), asyncio.Lock()
        self._is_blaming = False
        self._following = asyncio.create_task(self.maker.follow())
        self._following.add_done_callback(_end_process)
        self._loop = asyncio.create_task(self.maker.work())
        self._loop.add_done_callback(_end_process)
        self.outbox.start()

    # -- called by the replicas: edits --------------------------------------------------------------------------------

    async def submit(
        self, edits: list[dict[str, Any]], wait: bool, key: str | None, poster: str | None = None
    ) -> list[dict[str, Any]]:
        """Queue the edits durably; with `wait`, until they are served, refused, or `wait_timeout_s` has passed.

        Raises `EditRejected`, `KeyReused`, `QueueFull` or `JournalFailed` before anything is queued, and `SwapFailed` if the
        edits are made and durable but replicas do not serve them yet.
        """
        await self._check([Edit.from_json(edit) for edit in edits])
        try:
            depth = self.journal.depth
            ids = self.journal.submit(edits, key, poster, current_traceparent(), self.options.max_queue)
        except QueueFull as full:
            raise QueueFull(full.depth, full.num_edits, full.limit, self._seconds_for(full.num_edits)) from None
        self.maker.metrics.settled("queued", self.journal.depth - depth)  # none if the key came before
        event(logger, "edit.queued", edit_ids=ids, by=poster)
        self.maker.wake()
        self.maker.audience.tell(ids)
        if wait:
            await self._until_settled(ids)
            await self.maker.served()
        return [self.journal.get(id).to_json() for id in ids]

    async def _check(self, edits: Sequence[Edit]) -> None:
        """Beside the loop, which has replicas to answer: a thousand edits take a third of a second. Posts stay in order."""
        async with self._checking:
            await asyncio.to_thread(check_edits, edits, self._tokenizer, self.shop.max_tokens)

    def _seconds_for(self, num_edits: int) -> int:
        """How long it takes to make room for so many, as the last versions went; whole seconds, at least one."""
        spent = sum(t["edit_s"] + t["append_s"] + t["swap_ms"] / 1e3 for t in self.maker.timings)
        made = sum(t["num_edits"] for t in self.maker.timings)
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(num_edits * spent / max(made, 1))))

    async def _until_settled(self, ids: Sequence[str]) -> None:
        with self.maker.audience.waiter(ids) as waiter:
            try:
                async with asyncio.timeout(self.options.wait_timeout_s):
                    await waiter.done.wait()
            except TimeoutError:
                logger.warning("%d edits were not settled in %s s", len(waiter.open_ids), self.options.wait_timeout_s)

    async def edit_status(self, id: str) -> dict[str, Any]:
        return self.journal.get(id).to_json()

    async def edits(self, state: str | None, limit: int, before: int | None) -> dict[str, Any]:
        """Newest first; `next` goes on after the last of them, None at the end."""
        found = self.journal.newest(limit + 1, state, before)
        shown = found[:limit]
        return {"edits": [entry.to_json() for entry in shown], "next": shown[-1].seq if len(found) > limit else None}

    async def edit_events(self, id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """(state, edit): the state that an edit is in, and each that it comes to, until it is settled. Raises `UnknownEdit`."""
        try:
            with self.maker.audience.feed.listener([id]) as listener:
                entry = self.journal.get(id)
                yield entry.state, entry.to_json()
                if entry.is_settled:
                    return
                async for told in listener:
                    state = told.data.get("state", told.kind)
                    yield state, told.data
                    if state in SETTLED:
                        return
        except TooManyListeners as many:
            yield "error", {"message": str(many)}

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """(kind, data) of everything that happens from now on."""
        try:
            with self.maker.audience.feed.listener() as listener:
                async for told in listener:
                    yield told.kind, told.data
        except TooManyListeners as many:
            yield "error", {"message": str(many)}

    # -- called by the replicas: versions -----------------------------------------------------------------------------

    async def rollback(self, version: int, by: str | None = None) -> dict[str, Any]:
        return await self.maker.whole(self.maker.rollback(version, by))

    async def revert(self, edits: list[str], versions: list[int], mode: str, by: str | None = None) -> dict[str, Any]:
        for id in edits:
            self.journal.get(id)
        try:
            return await self.maker.whole(self.maker.revert(edits, versions, mode, by))
        except RevertRefused as refused:
            if refused.kind == "unknown" and refused.edit in edits:  # it was accepted here, and is in no version
                raise RevertRefused(refused.reason, "not live", edit=refused.edit, field=refused.field) from None
            raise

    async def blame(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """One at a time, since edits wait meanwhile. Raises `Busy`."""
        if self._is_blaming:
            raise Busy("another answer is being looked into")
        self._is_blaming = True
        try:
            return await self.maker.whole(self.maker.blame(prompt, max_tokens))
        finally:
            self._is_blaming = False

    # -- called by the replicas: how it goes --------------------------------------------------------------------------

    async def ready(self) -> str | None:
        """Why no edits are made at the moment, or None. The ledger is there once this is answered."""
        return self.maker.stalled

    async def status(self) -> dict[str, Any]:
        ledger = self.shop.ledger
        return {
            "head": ledger.head,
            "newest": ledger.newest,
            "queue_depth": self.journal.depth,
            "queue": {"depth": self.journal.depth, "age_s": round(self.journal.age_s, 3), "limit": self.options.max_queue},
            "stalled": self.maker.stalled,
            "replicas": await self.maker.fleet.ask("status"),
            "timings": list(self.maker.timings),
            "mirror": self.outbox.state,
            "worker": {"pid": os.getpid(), "editor": self.options.workshop.editor, "ledger": str(ledger.directory)},
        }

    async def expositions(self) -> dict[str, str]:
        """Everybody's Prometheus metrics, by the replica's name; the worker's own under `WORKER`."""
        replicas = await self.maker.fleet.ask("exposition")
        self.maker.metrics.waiting(self.journal.depth, self.journal.age_s)
        ledger = self.shop.ledger
        self.maker.metrics.stands_at(ledger.head, ledger.newest, {replica: version for replica, version, _ in replicas})
        self.maker.metrics.mirrored(self.outbox.behind)
        return {WORKER: self.maker.metrics.exposition()} | {replica: text for replica, _, text in replicas}

    async def check_health(self) -> None:
        if self._loop.done():
            raise RuntimeError("the edit worker's loop has ended")


def _end_process(task: asyncio.Task[None]) -> None:
    """The loop ends only by a fault: Serve then replaces the process, which starts from journal and ledger."""
    if not task.cancelled():
        logger.error("the edit worker's loop has failed", exc_info=task.exception())
        os._exit(1)


def _recover(path: str) -> None:
    """Mend the ledger where it can be, before anybody stands on it. Raises `LedgerDamaged`."""
    with contextlib.suppress(FileNotFoundError):  # the workshop makes it
        for note in recover(Ledger.open(path)).notes:
            logger.warning("the ledger in %s: %s", path, note)
