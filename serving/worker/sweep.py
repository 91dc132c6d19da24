"""The sweep: while no edit waits, the live model is asked the edits that it holds, and lost ones are made again.

A candidate is asked every earlier edit, or a part of them if there are many (`errata/guard/earlier_edits.py`). What that
misses, and what a restart, a rollback or a revert leaves unknown, is asked here, a few edits at a time, so that a post waits
for one step at most. A lost edit is made again in a version without own edits, at first together with others, then alone.
"""

from __future__ import annotations

import asyncio
import logging
import time

from errata.edit import Edit, EditRejected
from errata.ledger import LedgerConflict
from serving.logs import event
from serving.metrics import WorkerMetrics, reason_of
from serving.worker.live_model import LiveModel
from serving.worker.publish import Publisher
from serving.worker.replicas import Unloadable

logger = logging.getLogger("errata")

NUM_ASKED, NUM_REPAIRED = 16, 8  # in one step


class LiveSweep:
    """Asks and repairs in steps. Each step holds the publisher's `writing`."""

    def __init__(self, live_model: LiveModel, publisher: Publisher, metrics: WorkerMetrics) -> None:
        self.live_model, self.publisher, self.metrics = live_model, publisher, metrics

    async def step(self) -> bool:
        """Ask some edits of the version or, once all were asked, repair some that are lost; False if nothing is left to do."""
        async with self.publisher.writing:
            if await asyncio.to_thread(self.live_model.look, NUM_ASKED):
                self._count()
                return True
            lost = self.live_model.to_repair(NUM_REPAIRED)
            if lost:
                await self._repair(lost)
            self._count()
            return bool(lost)

    async def _repair(self, lost: list[Edit]) -> None:
        """Publish a version that answers the lost edits again. A refusal is the next try's matter, or the end of the tries."""
        begin, ids = time.perf_counter(), [edit.id for edit in lost if edit.id is not None]
        try:
            made = await asyncio.to_thread(self.live_model.repair, lost)
            version = await self.publisher.publish(made, time.perf_counter() - begin, [])
        except EditRejected as refusal:
            version_now, why, code = self.live_model.version, reason_of(refusal.code), refusal.code.value
            event(logger, "edit.lost", logging.WARNING, edit_ids=ids, version=version_now, reason=why, code=code)
        except LedgerConflict:
            await asyncio.to_thread(self.live_model.move_to, self.live_model.ledger.head)
        except Unloadable as fault:
            event(logger, "edit.lost", logging.ERROR, edit_ids=ids, error=fault)
        else:
            self.metrics.repaired(len(lost))
            event(logger, "edit.repaired", edit_ids=ids, version=version.number)

    def _count(self) -> None:
        self.metrics.held(**self.live_model.held_counts)
