"""Publication of a version: append to the ledger, swap on all replicas, and retraction of what no replica can load.

The ledger is written before any replica is asked, so a crash in between leaves a durable version that the replicas reach by
following the ledger's head.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from errata.candidate import CandidateVersion
from errata.generate import SwapFailed
from errata.ledger import LedgerDamaged, Version
from serving.logs import event
from serving.metrics import WorkerMetrics
from serving.tracing import batch_span
from serving.worker.events import Waiters
from serving.worker.journal import JournalFailed
from serving.worker.live_model import LiveModel
from serving.worker.mlflow_mirror import MlflowMirrorTask
from serving.worker.reconcile import Reconciler
from serving.worker.replicas import SWAP_ATTEMPTS, Replicas, Unloadable

logger = logging.getLogger("errata")

NUM_TIMINGS = 200
FOLLOW_PERIOD_S = 2.0


@dataclass(eq=False)
class Publisher:
    """Makes the ledger's head what every replica serves.

    `writing` is held by every writer of the ledger and user of the live model. `wake` starts the edit loop after edits were
    queued again. `timings` describe the last versions. `stalled` is the reason why the replicas cannot follow, or None.
    """

    live_model: LiveModel
    reconciler: Reconciler
    waiters: Waiters
    mirror: MlflowMirrorTask
    metrics: WorkerMetrics
    wake: Callable[[], None]
    replicas: Replicas = field(default_factory=Replicas)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    timings: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=NUM_TIMINGS))
    stalled: str | None = None
    _catching_up: asyncio.Task[None] | None = None

    @property
    def head(self) -> Version:
        return self.live_model.ledger.version(self.live_model.ledger.head)

    async def swap_to_head(self, attempts: int = SWAP_ATTEMPTS) -> None:
        """Swap the head in on every replica. Raises `Unloadable` and `SwapFailed` as `Replicas.swap` does."""
        epoch, head = self.live_model.ledger.head_at()
        await self.replicas.swap(self.live_model.ledger.version(head), epoch, attempts)

    async def publish(self, candidate: CandidateVersion, edit_s: float, traces: Sequence[str | None]) -> Version:
        """Append a candidate to the ledger and swap it in; the caller holds `writing`.

        Raises `LedgerConflict`, and `Unloadable` after the head has been moved back.
        """
        begin = time.perf_counter()
        before = self.live_model.ledger.head
        with batch_span("errata.append", traces):
            version = await asyncio.to_thread(self.live_model.append, candidate)
        append_s = time.perf_counter() - begin
        guard_s = version.scorecard.get("guard_s", 0.0)
        changed = {"version": version.number, "parent": version.parent, "num_edits": len(candidate.edits)}
        self.waiters.event_bus.publish("version", changed)
        self.waiters.event_bus.publish("head", {"head": version.number, "before": before})
        timing = {"version": version.number, "num_edits": len(candidate.edits), "edit_s": round(edit_s, 4)}
        timing |= {"append_s": round(append_s, 4)} | await self._serve(version, before, traces)
        if not version.scorecard.keys() & {"reverted", "repaired", "consolidated"}:
            self.metrics.published(len(candidate.edits), edit_s - guard_s, guard_s, append_s)
        self.timings.append(timing)
        self.mirror.wake()
        return version

    async def _serve(self, version: Version, before: int, traces: Sequence[str | None]) -> dict[str, Any]:
        """Swap a version in and return the timing. Late replicas follow by themselves and are named in `swap_error`.

        Raises `Unloadable` after the version has been retracted.
        """
        begin = time.perf_counter()
        found: dict[str, Any] = {"swap_at": time.time()}
        try:
            with batch_span("errata.swap", traces, version=version.number):
                await self.swap_to_head()
        except Unloadable as fault:
            self.metrics.swap_failed()
            await self._retract(version.number, before, fault)
            await self.return_to_head()
            raise
        except SwapFailed as fault:  # The edit is made and durable.
            self.metrics.swap_failed()
            found["swap_error"] = str(fault)
            event(logger, "swap.late", logging.ERROR, version=version.number, replicas=fault.replicas, error=fault)
        swap_s = time.perf_counter() - begin
        self.metrics.swapped(swap_s)
        replicas = [replica for replica in self.replicas.replicas if replica.get("bytes")]
        sizes = {name: replica[name] for replica in replicas[:1] for name in ("bytes", "dense_bytes")}
        return {"swap_ms": round(swap_s * 1e3, 2), **sizes, **found}

    async def return_to_head(self) -> None:
        """Swap replicas that went ahead back to the head; those that do not answer follow by themselves."""
        try:
            await self.swap_to_head()
        except SwapFailed as fault:
            logger.error("%s", fault)

    async def served(self) -> None:
        """Wait until every replica serves the head; concurrent callers share one attempt.

        Raises `SwapFailed`, and `JournalFailed`, `LedgerDamaged` or `OSError` if the head must be retracted and cannot be.
        """
        if self.replicas.is_behind or not self.reconciler.is_settled:
            if self._catching_up is None or self._catching_up.done():
                self._catching_up = asyncio.create_task(self._catch_up())
            await asyncio.shield(self._catching_up)

    async def _catch_up(self) -> None:
        async with self.writing:
            self.waiters.publish(self.reconciler.settle_retracted())
            if self.replicas.is_behind:
                try:
                    await self.swap_to_head(attempts=1)
                except Unloadable as fault:
                    await self._retract_late(fault)
                    raise

    async def _retract_late(self, fault: Unloadable) -> None:
        """Retract a head that replicas refuse only after it was reported as applied, and queue its edits again.

        This happens when the replicas did not answer while the version was made, or when the previous process died before
        it could retract the version. A head that was chosen by a rollback stays.
        """
        version = self.head
        before = self.live_model.ledger.head_before(version.number)
        if before is None:
            return
        self.reconciler.is_settled = False
        await self._retract(version.number, before, fault)
        self.reconciler.settle_retracted()  # Before the replicas are asked, because they may take long to come back.
        self.wake()
        put_in_again = version.scorecard.get("reverted", {}).get("edits", [])
        self.waiters.publish([*(edit.id for edit in version.edits if edit.id is not None), *put_in_again])
        await self.return_to_head()

    async def _retract(self, version: int, before: int, fault: Unloadable) -> None:
        await asyncio.to_thread(self.live_model.retract, version, before)
        event(logger, "version.retracted", logging.ERROR, version=version, error=fault)
        self.waiters.event_bus.publish("head", {"head": before, "before": version})

    async def follow(self) -> None:
        """Ask late or restarted replicas again until all of them serve the head; runs beside the edit loop."""
        while True:
            await asyncio.sleep(FOLLOW_PERIOD_S)
            why = None
            try:
                await self.served()
            except SwapFailed as fault:
                event(logger, "swap.late", logging.WARNING, version=fault.version, replicas=fault.replicas, error=fault)
            except (OSError, LedgerDamaged, JournalFailed) as fault:  # A new process would meet the same fault.
                why = f"{type(fault).__name__}: {fault}"
                event(logger, "edits.stalled", logging.ERROR, error=fault, queued_s=FOLLOW_PERIOD_S)
            self.stalled = why
