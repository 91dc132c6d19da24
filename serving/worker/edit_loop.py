"""The edit worker's loop: takes queued edits batch by batch, edits, publishes, and records what became of each edit.

The journal holds what was accepted, the ledger what was made. A crash between the two is settled at start by the edits' ids
(`reconcile.py`). A crash between append and swap is settled by the replicas, which follow the ledger's head (`publish.py`).
The edits of a version that was damaged on disk are made again from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from errata.edit import Edit, EditRejected
from errata.editors.tiers import Tiers
from errata.generate import SwapFailed
from errata.guard.bisection import BatchBisection, Group, Settled
from errata.ledger import HeadMoved, LedgerConflict
from errata.local.consolidation_policy import ConsolidationPolicy
from errata.local.service_limits import ServiceLimits
from serving.logs import event
from serving.metrics import WorkerMetrics, reason_of
from serving.tracing import batch_span, current_traceparent, past_span
from serving.worker.consolidation import Consolidator
from serving.worker.core_sharing import CoreSharing
from serving.worker.events import Waiters
from serving.worker.head_answers import HeadAnswers
from serving.worker.journal import Journal, JournalFailed
from serving.worker.journal_entry import Entry
from serving.worker.live_model import LiveModel
from serving.worker.lull import Lull
from serving.worker.mlflow_mirror import MlflowMirrorTask
from serving.worker.publish import Publisher
from serving.worker.reconcile import Reconciler
from serving.worker.replicas import Replicas, Unloadable
from serving.worker.served_check import ServedCheck
from serving.worker.snapshots import write_snapshots
from serving.worker.sweep import LiveSweep
from serving.worker.walks import BlameWalk

logger = logging.getLogger("errata")

Answer = TypeVar("Answer")

MAX_STALL_S = 10.0


class EditLoop:
    """Turns queued edits into published versions, and serves rollbacks and reverts between two batches.

    Everything that writes to the ledger or uses the live model holds `writing`: the loop (`work`), `rollback`, `revert`, the
    copy for a blame (`walk`), and the publisher when it retracts a version.
    """

    def __init__(
        self,
        live_model: LiveModel,
        journal: Journal,
        mirror: MlflowMirrorTask,
        max_batch: int,
        batch_window_s: float,
        replicas: Replicas | None = None,
        limits: ServiceLimits | None = None,
    ) -> None:
        self.live_model, self.journal, self.mirror = live_model, journal, mirror
        self.max_batch, self.batch_window_s = max_batch, batch_window_s
        self.waiters, self.metrics = Waiters(journal, limits), WorkerMetrics()
        self.reconciler = Reconciler(live_model.ledger, journal, self.wake)
        self.publisher = Publisher(
            live_model, self.reconciler, self.waiters, mirror, self.metrics, self.wake, replicas or Replicas()
        )
        self.lull = mirror.lull = Lull()
        self.served_check = ServedCheck(self.publisher.replicas, self.metrics, self.lull)
        self.core_sharing = CoreSharing(self.publisher.replicas)
        self.sweep = LiveSweep(live_model, self.publisher, self.metrics)
        self.consolidator: Consolidator | None = None
        self.writing = self.publisher.writing
        self._stalled: str | None = None
        self._num_stalls, self._held_at = 0, -1
        self._arrived = asyncio.Event()
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def stalled(self) -> str | None:
        """The reason why edits or published versions wait for the disk, or None."""
        return self._stalled or self.publisher.stalled

    def wake(self) -> None:
        """Start the next batch; called after edits were queued."""
        self.lull.edited()
        self._arrived.set()

    async def to_completion(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run `work` to its end even if the caller is cancelled, so that `writing` is never released half-way."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    # -- moves of the head --------------------------------------------------------------------------------------------

    async def rollback(self, version: int, by: str | None = None, expected_head: int | None = None) -> dict[str, Any]:
        """Make an earlier or a later version the head; `swap_error` names replicas that are late.

        Raises `UnknownVersion`, `HeadMoved` if the head is not `expected_head`, and `Unloadable` if the replicas refuse the
        version. The head is then where it was.
        """
        async with self.writing:
            before = self.live_model.ledger.head
            begin = time.perf_counter()
            await self._move_to(version, by, expected_head)
            found: dict[str, Any] = {"version": version}
            try:
                await self.publisher.swap_to_head()
            except Unloadable:
                await self._move_to(before, None)
                await self.publisher.return_to_head()
                raise
            except SwapFailed as fault:
                found["swap_error"] = str(fault)
            await self._mark_reverted()
            self.mirror.wake()
        self.wake()  # The sweep asks the version.
        self.metrics.rolled_back()
        event(logger, "version.rolled_back", version=version, parent=before, by=by)
        return {**found, "swap_ms": round((time.perf_counter() - begin) * 1e3, 2)}

    async def _move_to(self, version: int, by: str | None, expected_head: int | None = None) -> None:
        before = self.live_model.ledger.head
        await asyncio.to_thread(self.live_model.move_to, version, by or "", expected_head)
        self.waiters.event_bus.publish("head", {"head": version, "before": before})

    async def _mark_reverted(self) -> None:
        """Mark and publish what the new head takes out or brings back.

        The head has moved: a journal that fails now is brought in line later, and the caller is answered by what was done.
        """
        try:
            self.waiters.publish(await asyncio.to_thread(self.reconciler.mark_reverted))
        except (JournalFailed, OSError) as fault:
            self.reconciler.is_settled = False
            event(logger, "edits.stalled", logging.ERROR, error=fault)

    async def revert(
        self, edits: list[str], versions: list[int], mode: str, by: str | None = None, expected_head: int | None = None
    ) -> dict[str, Any]:
        """Publish a version without the chosen edits; `swap_error` names replicas that are late.

        Raises `RevertRefused`, `EditRejected`, `Unloadable`, `HeadMoved` if the head is not `expected_head`, and
        `LedgerConflict` if another writer has moved it. If the version is retracted later, the edits are live again.
        """
        async with self.writing:
            if expected_head is not None and expected_head != (head := self.live_model.ledger.head):
                raise HeadMoved(expected_head, head)
            begin = time.perf_counter()
            with self.core_sharing.editing():
                made = await asyncio.to_thread(self.live_model.revert, edits, versions, mode)
            try:
                version = await self.publisher.publish(made, time.perf_counter() - begin, [current_traceparent()])
            except LedgerConflict:  # Another writer has moved the head: the next call is made on that.
                await asyncio.to_thread(self.live_model.move_to, self.live_model.ledger.head)
                raise
            reverted = version.scorecard["reverted"]
            await self._mark_reverted()
            late = {name: why for name, why in self.publisher.timings[-1].items() if name == "swap_error"}
        self.wake()
        self.metrics.reverted(len(reverted["edits"]))
        event(logger, "edit.reverted", edit_ids=reverted["edits"], version=version.number, mode=reverted["mode"], by=by)
        found = {"version": version.number, "mode": reverted["mode"], "reverted": reverted["edits"]}
        return {**found, **late, "scorecard": version.scorecard}

    async def walk(self) -> BlameWalk:
        """Copy the live model for a blame; edits wait for the copy, and not for the walk."""
        async with self.writing:
            return await asyncio.to_thread(self.live_model.walk)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def consolidate(self, policy: ConsolidationPolicy, shares_cores: bool) -> None:
        """Let the weights learn by this policy what the memory holds, where the editor has both."""
        if isinstance(getattr(self.live_model, "editor", None), Tiers) and policy != ConsolidationPolicy():
            sharing = CoreSharing(self.publisher.replicas, shares_cores)
            self.consolidator = Consolidator(self.live_model, self.publisher, self.metrics, policy, sharing, self.served_check)

    def tasks(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """Return what runs for ever: the loop, the follower of the replicas, the writer of snapshots, and consolidation."""
        snapshots = write_snapshots(self.live_model.ledger, self.lull, self.writing)
        consolidation = () if self.consolidator is None else (self.consolidator.work(),)
        return self.work(), self.publisher.follow(), snapshots, *consolidation

    async def work(self) -> None:
        """Consume the journal's queue for ever.

        Sweeps the live edits until `wake`, then waits up to the batch window for further edits. A fault of the disk is waited
        out in `_stall`.
        """
        while True:
            try:
                await self._until_arrived()
                self._arrived.clear()
                while entries := await self._taken():
                    await self._apply(entries)
                    self._num_stalls = 0
            except (OSError, JournalFailed) as fault:
                await self._stall(fault)

    async def _taken(self) -> list[Entry]:
        """Take the next batch, none if no edit is queued or those that are have to wait."""
        if (depth := self.journal.depth) == 0:
            return []
        if depth < self.max_batch:
            await asyncio.sleep(self.batch_window_s)
        return self.journal.take(self.max_batch)

    async def _until_arrived(self) -> None:
        """Wait for `wake`, or for an edit that is put aside; meanwhile ask the live edits, and make lost ones again."""
        while not self._arrived.is_set():
            async with self.writing:
                await self._hold_unchanged()
            if not await self.sweep.step():
                break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.journal.free_in_s):
                await self._arrived.wait()

    async def _hold_unchanged(self) -> None:
        """Let the live model hold the edits that were applied without a version; it forgets them when it loads another one."""
        if self._held_at != self.live_model.num_loads:
            self._held_at = self.live_model.num_loads
            live = {0, *self.live_model.ledger.chain(self.live_model.version)}
            entries = [entry for entry in self.journal.unchanged() if entry.version in live]
            said = [entry.unchanged or "" for entry in entries]
            await asyncio.to_thread(self.live_model.hold, [_edit_of(entry) for entry in entries], said)

    async def _stall(self, fault: Exception) -> None:
        """Wait with growing pauses until the disk accepts writes, then resume from the journal and the ledger.

        No edit is taken before that: edits that were `applying` at the fault would otherwise stay so for ever.
        """
        failed: Exception | None = fault
        while failed is not None:
            self._stalled = f"{type(failed).__name__}: {failed}"
            wait_s = min(MAX_STALL_S, 0.5 * 2**self._num_stalls)
            self._num_stalls += 1
            event(logger, "edits.stalled", logging.ERROR, error=failed, queued_s=wait_s)
            await asyncio.sleep(wait_s)
            failed = await self._resumed()
        self._stalled = None
        self._arrived.set()

    async def _resumed(self) -> Exception | None:
        """Settle what was made and queue again what was not; returns the fault that prevented it, or None."""
        async with self.writing:
            try:
                pending = self.journal.pending()
                await asyncio.to_thread(self.live_model.move_to, self.live_model.ledger.head)
                if self.reconciler.finish_made():
                    self.publisher.replicas.is_behind = True  # The version was appended before any replica was asked to swap.
                self.journal.requeue([entry.id for entry in self.journal.pending() if entry.state == "applying"])
                self.waiters.publish([entry.id for entry in pending])
            except (OSError, JournalFailed) as fault:
                return fault
        return None

    async def _apply(self, entries: list[Entry]) -> None:
        """Publish one version of these edits, or several if some are refused and the rest is bisected.

        A rollback may run between two attempts; the next attempt is then made on the version that it chose. If older edits
        were queued again meanwhile, the remaining edits are queued again too, so that the last post for a prompt counts.
        """
        num_reopenings = self.reconciler.num_reopenings
        edits = [_edit_of(entry) for entry in entries]
        bisection, answers = BatchBisection(edits), HeadAnswers(self.live_model, edits)
        for entry in entries:
            past_span("errata.queue", entry.created, time.time(), [entry.trace], edit=entry.id)
        self.waiters.publish([entry.id for entry in entries])
        while (group := bisection.next_group()) is not None:
            tried = [entries[i] for i in group]
            async with self.writing:
                self.waiters.publish(self.reconciler.settle_retracted())
                if self.reconciler.num_reopenings != num_reopenings:
                    return self._requeue([*tried, *(entries[i] for i in bisection.left())])
                await self._hold_unchanged()
                try:
                    settled = await self._try(bisection, answers, group, tried)
                except (LedgerConflict, Unloadable) as fault:
                    return await self._give_back(fault, tried, [entries[i] for i in bisection.left()])
                if isinstance(settled, _Answered):
                    superseded = bisection.made(group)
                    self._finish(tried, settled, {entries[i].id: why.reason for i, why in superseded})
                    gone = [*group, *(i for i, _ in superseded)]
                else:
                    await self._refuse([(entries[i], edits[i], why, answers.known(i)) for i, why in settled])
                    gone = [i for i, _ in settled]
            self.waiters.publish([entries[i].id for i in gone])

    async def _try(
        self, bisection: BatchBisection, answers: HeadAnswers, group: Group, tried: list[Entry]
    ) -> _Answered | Settled:
        """Edit one group and publish it; returns the version that answers it, or the edits that are refused by now.

        Edits that the head answers already need no version. They are looked at once more after the others are made, because
        these may change their answers. Raises `LedgerConflict` and `Unloadable`.
        """
        begin, traces, edits = time.perf_counter(), [entry.trace for entry in tried], bisection.batch(group).edits
        try:
            # Until the version is made, not until it is served: the swap is short if the engines have all cores.
            with self.core_sharing.editing(), batch_span("errata.edit", traces, num_edits=len(group)):
                said = await asyncio.to_thread(answers.to, group)
                true = [i for i, one in zip(group, said, strict=True) if one.is_target]
                if len(true) == len(group):
                    texts = {entry.id: one.text or "" for entry, one in zip(tried, said, strict=True)}
                    return _Answered(self.live_model.version, texts)
                if true:
                    bisection.postpone(group, tuple(true))
                    right = [one.text or "" for one in said if one.is_target]  # The version of the others is asked them, too.
                    await asyncio.to_thread(self.live_model.hold, [bisection.edits[i] for i in true], right)
                    return []
                before, in_chat = [one.text for one in said], [one.last for one in said]
                made = await asyncio.to_thread(self.live_model.make, edits, before, in_chat)
        except EditRejected as refusal:
            return bisection.refused(group, refusal.with_traceback(None))  # A traceback would keep the candidate in memory.
        # A restart settles the edits that the version supersedes by this record.
        superseded = {bisection.edits[i].id: bisection.edits[j].id for i, j in bisection.contradicted_by(group).items()}
        made = replace(made, scorecard={**made.scorecard, **({"superseded": superseded} if superseded else {})})
        version = await self.publisher.publish(made, time.perf_counter() - begin, traces)
        self.served_check.begin(version.number, version.edits)
        return _Answered(version.number)

    # -- what becomes of an edit --------------------------------------------------------------------------------------

    def _requeue(self, entries: list[Entry]) -> None:
        self.journal.requeue([entry.id for entry in entries])
        self.waiters.publish([entry.id for entry in entries])

    def _finish(self, answered: list[Entry], by: _Answered, superseded: dict[str, str]) -> None:
        """Settle the edits that a version answers, and those that they supersede."""
        self.lull.edited()
        ids = [entry.id for entry in answered]
        self.journal.finish(ids, by.version, by.unchanged, superseded)
        if by.unchanged:
            self._held_at = -1
            self.metrics.settled("applied", len(ids))
            event(logger, "edit.unchanged", edit_ids=ids, version=by.version)
        else:
            event(logger, "edit.applied", edit_ids=ids, version=by.version)
        self.metrics.settled("superseded", len(superseded))

    async def _refuse(self, refused: list[tuple[Entry, Edit, EditRejected, str | None]]) -> None:
        """Reject edits, each with the reason and what the model says: now, unless the refusal has what it says when edited."""
        for entry, edit, why, now in refused:
            await asyncio.to_thread(self.live_model.ledger.refuse, self.live_model.version, edit, why, now)
            self.live_model.release(edit)
            is_named = now is None or why.says is not None
            reason = why.reason if is_named else f"{why.reason}; the model answers {now!r}"
            self.journal.reject(entry.id, reason, why.field, why.code, now if why.says is None else why.says)
            self.metrics.refused(why)
            code, group = why.code.value, reason_of(why.code)
            event(logger, "edit.refused", edit_ids=[entry.id], reason=group, code=code, by=entry.poster)

    async def _give_back(self, fault: Exception, tried: list[Entry], left: list[Entry]) -> None:
        """Queue edits again whose version met a moved head (`LedgerConflict`) or could not be served (`Unloadable`)."""
        event(logger, "edit.made_again", logging.ERROR, edit_ids=[entry.id for entry in (*tried, *left)], error=fault)
        if isinstance(fault, Unloadable):
            self.journal.retry([entry.id for entry in tried], f"its version could not be served: {fault.reason}")
        else:
            await asyncio.to_thread(self.live_model.move_to, self.live_model.ledger.head)
            self.reconciler.finish_made()  # Another writer may have made them.
            self.journal.requeue([entry.id for entry in tried])
        self.journal.requeue([entry.id for entry in left])
        self.waiters.publish([entry.id for entry in (*tried, *left)])


@dataclass(frozen=True)
class _Answered:
    """The edits of a group are answered by this version; `unchanged` has its answers if it was not made of them."""

    version: int
    unchanged: Mapping[str, str] = field(default_factory=dict)


def _edit_of(entry: Entry) -> Edit:
    return Edit.from_json({**entry.edit, "poster": entry.poster, "approver": entry.approver})
