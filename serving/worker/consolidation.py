"""Consolidation in the background: the weights learn edits that wait in the memory, and these leave it.

A step is computed on a copy of the live model, in a thread, without the lock that posts need: edits go on into the memory
meanwhile. Only the copy at the begin and the publication at the end hold it. A step that the guard refuses, or whose edits
the weights do not answer, changes nothing; the edits stay in the memory and are tried again, `MAX_TRIES` times in all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from errata.edit import Edit, EditRejected
from errata.editors.state import EditorState
from errata.editors.tiers import Tiers, is_in_memory
from errata.guard.inspector import Inspector
from errata.guard.inspector_copy import inspector_of_copy
from errata.guard.limits import VersionRefused
from errata.history.consolidation import Consolidated, consolidate, published
from errata.ledger import LedgerConflict, LedgerDamaged, UnknownVersion
from errata.local.consolidation_policy import ConsolidationPolicy
from serving.logs import event
from serving.metrics import WorkerMetrics, reason_of
from serving.worker.core_sharing import CoreSharing
from serving.worker.live_model import LiveModel, refused_without_memory
from serving.worker.publish import Publisher
from serving.worker.replicas import Unloadable
from serving.worker.served_check import ServedCheck

logger = logging.getLogger("errata")

PERIOD_S = 0.5
MAX_TRIES = 3


@dataclass(frozen=True)
class ConsolidationJob:
    """Edits of the memory, and a copy of the live model at `version` to make the step of the weights on."""

    tiers: Tiers
    edits: Sequence[Edit]
    state: EditorState
    inspector: Inspector
    version: int

    def make(self) -> Consolidated:
        """Make the step. Raises `EditRejected`."""
        with refused_without_memory():
            return consolidate(self.tiers, self.edits, self.state, self.inspector, self.version)


class Consolidator:
    """Makes and publishes consolidations by a policy. `writing` of the publisher is held where the live model is used."""

    def __init__(
        self,
        live_model: LiveModel,
        publisher: Publisher,
        metrics: WorkerMetrics,
        policy: ConsolidationPolicy,
        core_sharing: CoreSharing,
        served_check: ServedCheck,
    ) -> None:
        self.live_model, self.publisher, self.metrics = live_model, publisher, metrics
        self.policy, self.core_sharing, self.served_check = policy, core_sharing, served_check
        self.num_tries = Counter[str]()  # By edit; a restart tries again.
        self.most_together = policy.batch  # Halved after a refusal by the guard, which names no edit.

    async def work(self) -> None:
        """Consolidate for ever, whenever it is due. A fault of the disk is waited out by the edit loop."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.step()
            except (OSError, LedgerDamaged, UnknownVersion) as fault:
                event(logger, "edits.stalled", logging.ERROR, error=fault)

    async def step(self) -> bool:
        """Make and publish one consolidation if it is due; False if nothing was published."""
        async with self.publisher.writing:
            job = await asyncio.to_thread(self._begun)
        if job is None:
            return False
        begin, ids = time.perf_counter(), [edit.id for edit in job.edits if edit.id is not None]
        try:
            with self.core_sharing.editing():
                made = await asyncio.to_thread(job.make)
        except EditRejected as refusal:
            self._refused(ids, refusal)
            return False
        self.num_tries.update(set(ids) - set(made.answered))
        self.most_together = min(self.policy.batch, 2 * self.most_together)
        async with self.publisher.writing:
            return await self._published(made, time.perf_counter() - begin)

    async def _published(self, made: Consolidated, seconds: float) -> bool:
        live = self.live_model
        assert isinstance(live.editor, Tiers)
        candidate = await asyncio.to_thread(published, made, live.editor, live.state, live.inspector, live.ledger, live.version)
        if candidate is None:
            self.num_tries.update(made.answered)
            self.metrics.consolidated("outdated")
            event(logger, "consolidation.outdated", version=live.version, parent=made.parent)
            return False
        try:
            version = await self.publisher.publish(candidate, seconds, [])
        except LedgerConflict:
            await asyncio.to_thread(live.move_to, live.ledger.head)
            return False
        except Unloadable as fault:
            self.num_tries.update(made.answered)
            self.metrics.consolidated("refused")
            event(logger, "consolidation.refused", logging.ERROR, edit_ids=list(made.answered), error=fault)
            return False
        moved = version.scorecard["consolidated"]["edits"]
        self.num_tries.update(set(made.answered) - set(moved))  # The record of another edit would answer them.
        self.metrics.consolidated("published")
        event(logger, "edit.consolidated", edit_ids=moved, version=version.number, edit_s=round(seconds, 3))
        held = live.inspector.earlier.held.by_id
        self.served_check.begin(version.number, [held[id].edit for id in moved if id in held])
        return True

    def _refused(self, ids: Sequence[str], refusal: EditRejected) -> None:
        """Note a step that was not made: its edits stay in the memory, and are tried again, fewer together."""
        self.num_tries.update(ids)
        if isinstance(refusal, VersionRefused):
            self.most_together = max(1, self.most_together // 2)
        self.metrics.consolidated("refused")
        why, code = reason_of(refusal.code), refusal.code.value
        event(logger, "consolidation.refused", logging.WARNING, edit_ids=list(ids), reason=why, code=code)

    def _begun(self) -> ConsolidationJob | None:
        """Copy what a due consolidation needs; None if none is due."""
        live = self.live_model
        waiting = self.waiting()
        if not self._is_due(waiting):
            return None
        chosen = sorted(waiting, key=lambda edit: self.num_tries[edit.id or ""])[: self.most_together]
        try:
            with refused_without_memory():
                _, model = live.copied()
        except EditRejected as refusal:
            self._refused([edit.id for edit in chosen if edit.id is not None], refusal)
            return None
        assert isinstance(live.editor, Tiers)
        return ConsolidationJob(live.editor, chosen, live.state, inspector_of_copy(live.inspector, model), live.version)

    def waiting(self) -> list[Edit]:
        """Return the edits of the memory that the weights may learn, the oldest first.

        The memory alone knows when an edit with a date holds. In an earlier version that was rolled back to, nothing is moved:
        it stays the head until the next edit.
        """
        live, bank = self.live_model, self.live_model.bank
        if bank is None or live.version != live.ledger.newest:
            return []
        ids = {record.edit for record in bank if not record.is_past}
        held = (one.edit for one in live.inspector.earlier.held if one.edit.id in ids)
        return [
            edit
            for edit in held
            if self.num_tries[edit.id or ""] < MAX_TRIES and not (edit.valid_from or edit.valid_to) and is_in_memory(edit, bank)
        ]

    def _is_due(self, waiting: Sequence[Edit]) -> bool:
        """Say if the policy asks for a consolidation, or the memory is full."""
        tiers, bank = self.live_model.editor, self.live_model.bank
        if waiting and isinstance(tiers, Tiers) and bank is not None and len(bank) >= tiers.max_records:
            return True
        return bool(waiting) and self.policy.is_due(len(waiting), self._age_s(waiting[0]))

    def _age_s(self, edit: Edit) -> float:
        """Return for how many seconds the memory has held an edit."""
        number = None if self.policy.age_s is None else self.live_model.ledger.find_edit(edit.id or "")
        if number is None:
            return 0.0
        created = datetime.fromisoformat(self.live_model.ledger.version(number).created)
        return (datetime.now(UTC) - created).total_seconds()
