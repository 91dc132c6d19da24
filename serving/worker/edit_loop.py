"""Makes the queued edits, one batch after the other: the edit worker's loop, and the other two that write versions.

The journal says what was accepted, the ledger what was made. A crash between the two is settled at start by the edits'
ids; a crash between the append and the swap by the replicas, which follow the ledger's head by themselves; a version that
was damaged on disk is set aside, and its edits are made again from the journal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from errata.edit import Edit, EditRejected
from errata.generate import SwapFailed
from errata.guard.bisection import BatchBisection, Group, Settled
from errata.ledger import LedgerConflict, LedgerDamaged, Version
from serving.logs import event
from serving.metrics import WorkerMetrics, reason_of
from serving.tracing import batch_span, current_traceparent, past_span
from serving.worker.events import Waiters
from serving.worker.journal import Entry, Journal, JournalFailed
from serving.worker.live_model import LiveModel, Made
from serving.worker.mlflow_mirror import MlflowMirrorTask
from serving.worker.replicas import Replicas, Unloadable

logger = logging.getLogger("ray.serve")

Answer = TypeVar("Answer")

NUM_TIMINGS = 200
MAX_STALL_S = 10.0
FOLLOW_PERIOD_S = 2.0


class EditLoop:
    """What writes excludes each other by `writing`: the loop `work`, `rollback`, `revert`; whoever needs the shop holds it.

    `timings` are the last versions'.
    """

    def __init__(
        self, shop: LiveModel, journal: Journal, outbox: MlflowMirrorTask, max_batch: int, batch_window_s: float
    ) -> None:
        self.shop, self.journal, self.outbox = shop, journal, outbox
        self.max_batch, self.batch_window_s = max_batch, batch_window_s
        self.fleet, self.audience, self.metrics = Replicas(), Waiters(journal), WorkerMetrics()
        self.timings: deque[dict[str, Any]] = deque(maxlen=NUM_TIMINGS)
        self._making_stalled: str | None = None
        self._following_stalled: str | None = None
        self._num_stalls = 0
        self._is_settled = False  # whether the journal knows of every version that was taken back
        self._num_reopenings = 0
        self.writing = asyncio.Lock()
        self._arrived = asyncio.Event()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._catching_up: asyncio.Task[None] | None = None

    @property
    def head(self) -> Version:
        return self.shop.ledger.version(self.shop.ledger.head)

    @property
    def stalled(self) -> str | None:
        """Why the edits, or what was made already, wait for the disk; None while all is well."""
        return self._making_stalled or self._following_stalled

    def wake(self) -> None:
        """Something was queued."""
        self._arrived.set()

    async def whole(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """To its end, though whoever asked for it has gone away: what holds `writing` must not be let go of half done."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    def reconcile(self) -> None:
        """What a dead predecessor was making is either in the ledger already, or queued again; so is what the disk lost.

        Every version that was ever set aside or taken back is looked at: a predecessor may have died before it had queued its
        edits.
        """
        for gone in self.shop.ledger.set_aside():
            num_edits = self.journal.reopen(gone.number) if gone.was_live else 0
            if num_edits:
                event(logger, "version.set_aside", logging.ERROR, version=gone.number, num_edits=num_edits, error=gone.faults)
        self._is_settled = False
        self._settle_withdrawn()
        self._finish_made()
        self._mark_reverted()
        self.journal.requeue_applying()
        self.wake()

    def _settle_withdrawn(self) -> None:
        """Queue again what was applied in versions that were taken back, and say of what they took out that it is in again.

        Raises `JournalFailed` and `OSError`: whoever writes next tries again, before anything else.
        """
        if self._is_settled:
            return
        for number in sorted(self.shop.ledger.withdrawn()):
            if num_edits := self.journal.reopen(number):
                self._num_reopenings += 1
                event(logger, "edit.made_again", logging.ERROR, version=number, num_edits=num_edits)
        self._mark_reverted(self.shop.ledger.head)
        self._is_settled = True

    def _finish_made(self) -> bool:
        """Settle what waits in the journal and is in the ledger; True if there was any."""
        made = {entry.id: self.shop.ledger.find_edit(entry.id) for entry in self.journal.pending()}
        for id, version in made.items():
            if version is not None:
                self.journal.finish([id], version)
        return any(version is not None for version in made.values())

    def _mark_reverted(self, before: int | None = None) -> None:
        """Say of the edits that the live versions took out that they are reverted, and of others that they are not (any more).

        Only the live versions that `before` has not are looked at, or the newest alone: one revert at most was under way.
        """
        ledger = self.shop.ledger
        live = ledger.chain(ledger.head)
        for version in self.journal.reverting():
            if version not in live:
                for id in self.journal.reverted_by(version):
                    self.journal.finish([id], ledger.find_edit(id) or 0)
        fresh = live[-1:] if before is None else sorted(set(live) - set(ledger.chain(before)))
        for number in fresh:
            if "reverted" in (card := ledger.version(number).scorecard):
                self.journal.revert(card["reverted"]["edits"], number)

    # -- the replicas -------------------------------------------------------------------------------------------------

    async def served(self) -> None:
        """Returns once every replica serves the head; whoever waits shares one attempt.

        Raises `SwapFailed`, and `JournalFailed`, `LedgerDamaged` or `OSError` if the head cannot be taken back.
        """
        if self.fleet.is_behind or not self._is_settled:
            if self._catching_up is None or self._catching_up.done():
                self._catching_up = asyncio.create_task(self._catch_up())
            await asyncio.shield(self._catching_up)

    async def _catch_up(self) -> None:
        async with self.writing:
            self._settle_withdrawn()
            if self.fleet.is_behind:
                try:
                    await self.fleet.swap(self.head, attempts=1)
                except Unloadable as fault:
                    await self._withdraw_late(fault)
                    raise

    async def _withdraw_late(self, fault: Unloadable) -> None:
        """A version that is refused after all: replicas did not answer when it was made, or a predecessor died before it had
        taken it back. Its edits, which were told to be applied, are made again. Where the head was moved to, it stays.
        """
        version = self.head
        before = self.shop.ledger.head_before(version.number)
        if before is None:
            return
        self._is_settled = False
        await self._withdraw(version.number, before)
        event(logger, "version.withdrawn", logging.ERROR, version=version.number, error=fault)
        self._settle_withdrawn()  # before the replicas, which may take long to come back
        self.wake()
        put_in_again = version.scorecard.get("reverted", {}).get("edits", [])
        self.audience.tell([*(edit.id for edit in version.edits if edit.id is not None), *put_in_again])
        await self._return()

    async def _withdraw(self, version: int, before: int) -> None:
        await asyncio.to_thread(self.shop.withdraw, version, before)
        self.audience.feed.tell("head", {"head": before, "before": version})

    async def follow(self) -> None:
        """Beside the loop: replicas that were late, or came up later, are asked again until they all serve the head."""
        while True:
            await asyncio.sleep(FOLLOW_PERIOD_S)
            why = None
            try:
                await self.served()
            except SwapFailed as fault:
                event(logger, "swap.late", logging.WARNING, version=fault.version, replicas=fault.replicas, error=fault)
            except (OSError, LedgerDamaged, JournalFailed) as fault:  # ending helps nobody: the next worker would, too
                why = f"{type(fault).__name__}: {fault}"
                event(logger, "edits.stalled", logging.ERROR, error=fault, queued_s=FOLLOW_PERIOD_S)
            self._following_stalled = why

    # -- other versions -----------------------------------------------------------------------------------------------

    async def rollback(self, version: int, by: str | None = None) -> dict[str, Any]:
        """Serve an earlier version, or once more a later one; `swap_error` names replicas that are late.

        Raises `UnknownVersion`, and `Unloadable` if the replicas refuse it: the head is put back then.
        """
        async with self.writing:
            before = self.shop.ledger.head
            begin = time.perf_counter()
            await self._move_to(version, by)
            found: dict[str, Any] = {"version": version}
            try:
                await self.fleet.swap(self.head)
            except Unloadable:
                await self._move_to(before, None)
                await self._return()
                raise
            except SwapFailed as fault:
                found["swap_error"] = str(fault)
            self._mark_reverted(before)
            self.outbox.wake()
        self.metrics.rolled_back()
        event(logger, "version.rolled_back", version=version, parent=before, by=by)
        return {**found, "swap_ms": round((time.perf_counter() - begin) * 1e3, 2)}

    async def _move_to(self, version: int, by: str | None) -> None:
        before = self.shop.ledger.head
        await asyncio.to_thread(self.shop.move_to, version, by or "")
        self.audience.feed.tell("head", {"head": version, "before": before})

    async def revert(self, edits: list[str], versions: list[int], mode: str, by: str | None = None) -> dict[str, Any]:
        """Take chosen edits out, as a new version; `swap_error` names replicas that are late.

        Raises `RevertRefused`, `EditRejected`, `Unloadable`. A version that is taken back only later takes nothing out.
        """
        async with self.writing:
            begin = time.perf_counter()
            made = await asyncio.to_thread(self.shop.revert, edits, versions, mode)
            version = await self._publish(made, time.perf_counter() - begin, [current_traceparent()])
            reverted = version.scorecard["reverted"]
            self.journal.revert(reverted["edits"], version.number)
            late = {name: why for name, why in self.timings[-1].items() if name == "swap_error"}
        self.audience.tell(reverted["edits"])
        self.metrics.reverted(len(reverted["edits"]))
        event(logger, "edit.reverted", edit_ids=reverted["edits"], version=version.number, mode=reverted["mode"], by=by)
        found = {"version": version.number, "mode": reverted["mode"], "reverted": reverted["edits"]}
        return {**found, **late, "scorecard": version.scorecard}

    async def blame(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """Which version brought the live answer; edits wait meanwhile."""
        async with self.writing:
            return (await asyncio.to_thread(self.shop.blame, prompt, max_tokens)).to_json()

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Waits for `_arrived`, then for company within the batch window; is unblocked by `submit`."""
        while True:
            try:
                await self._arrived.wait()
                self._arrived.clear()
                while (depth := self.journal.depth) > 0:
                    if depth < self.max_batch:
                        await asyncio.sleep(self.batch_window_s)
                    await self._apply(self.journal.take(self.max_batch))
                    self._num_stalls = 0
            except (OSError, JournalFailed) as fault:
                await self._stall(fault)

    async def _stall(self, fault: Exception) -> None:
        """The disk takes nothing: wait until it does, then go on from what journal and ledger say.

        Nothing is lost, nothing made twice. No edit is taken before: what was being made would stay so for good.
        """
        failed: Exception | None = fault
        while failed is not None:
            self._making_stalled = f"{type(failed).__name__}: {failed}"
            wait_s = min(MAX_STALL_S, 0.5 * 2**self._num_stalls)
            self._num_stalls += 1
            event(logger, "edits.stalled", logging.ERROR, error=failed, queued_s=wait_s)
            await asyncio.sleep(wait_s)
            failed = await self._resumed()
        self._making_stalled = None
        self._arrived.set()

    async def _resumed(self) -> Exception | None:
        """Settle what was made and queue again what was not; returns what kept it from that."""
        async with self.writing:
            try:
                pending = self.journal.pending()
                await asyncio.to_thread(self.shop.move_to, self.shop.ledger.head)
                if self._finish_made():
                    self.fleet.is_behind = True  # it was appended, and nobody was told to serve it
                self.journal.requeue([entry.id for entry in self.journal.pending() if entry.state == "applying"])
                self.audience.tell([entry.id for entry in pending])
            except (OSError, JournalFailed) as fault:
                return fault
        return None

    async def _apply(self, entries: list[Entry]) -> None:
        """A version of these edits; if they are refused, several of what is left without those that are to blame.

        Between two attempts a rollback may come in: what follows is made on the version that it went to. If older edits were
        queued again meanwhile, what is left goes back too: the last post for a prompt is to count.
        """
        num_reopenings = self._num_reopenings
        edits = [_edit_of(entry) for entry in entries]
        docket = BatchBisection(edits)
        for entry in entries:
            past_span("errata.queue", entry.created, time.time(), [entry.trace], edit=entry.id)
        self.audience.tell([entry.id for entry in entries])
        while (group := docket.next_group()) is not None:
            tried = [entries[i] for i in group]
            async with self.writing:
                self._settle_withdrawn()
                if self._num_reopenings != num_reopenings:
                    return self._requeue([*tried, *(entries[i] for i in docket.left())])
                try:
                    settled = await self._try(docket, group, tried)
                except (LedgerConflict, Unloadable) as fault:
                    return await self._give_back(fault, tried, [entries[i] for i in docket.left()])
                if isinstance(settled, Version):
                    self._finish(tried, settled)
                    superseded = docket.made(group)
                    self._supersede([(entries[i], why) for i, why in superseded], settled)
                    gone = [*group, *(i for i, _ in superseded)]
                else:
                    await self._refuse([(entries[i], edits[i], why) for i, why in settled])
                    gone = [i for i, _ in settled]
            self.audience.tell([entries[i].id for i in gone])

    def _requeue(self, entries: list[Entry]) -> None:
        self.journal.requeue([entry.id for entry in entries])
        self.audience.tell([entry.id for entry in entries])

    def _finish(self, made: list[Entry], version: Version) -> None:
        self.journal.finish([entry.id for entry in made], version.number)
        event(logger, "edit.applied", edit_ids=[entry.id for entry in made], version=version.number)

    def _supersede(self, gone: list[tuple[Entry, EditRejected]], version: Version) -> None:
        for entry, why in gone:
            self.journal.supersede(entry.id, why.reason, version.number)
        self.metrics.settled("superseded", len(gone))

    async def _refuse(self, refused: list[tuple[Entry, Edit, EditRejected]]) -> None:
        for entry, edit, why in refused:
            await asyncio.to_thread(self.shop.ledger.refuse, self.shop.version, edit, why)
            self.journal.reject(entry.id, why.reason, why.field)
            self.metrics.refused(why)
            event(logger, "edit.refused", edit_ids=[entry.id], reason=reason_of(why), by=entry.poster)

    async def _give_back(self, fault: Exception, tried: list[Entry], left: list[Entry]) -> None:
        """The head is not where the edits were made, or what was made is not served: they are made again."""
        event(logger, "edit.made_again", logging.ERROR, edit_ids=[entry.id for entry in (*tried, *left)], error=fault)
        if isinstance(fault, Unloadable):
            self.journal.retry([entry.id for entry in tried], f"its version could not be served: {fault.reason}")
        else:
            await asyncio.to_thread(self.shop.move_to, self.shop.ledger.head)
            self._finish_made()  # somebody else may have made them
            self.journal.requeue([entry.id for entry in tried])
        self.journal.requeue([entry.id for entry in left])
        self.audience.tell([entry.id for entry in (*tried, *left)])

    async def _try(self, docket: BatchBisection, group: Group, tried: list[Entry]) -> Version | Settled:
        """The version, which is served, or those that are refused now. Raises `LedgerConflict`, `Unloadable`."""
        begin, traces = time.perf_counter(), [entry.trace for entry in tried]
        try:
            with batch_span("errata.edit", traces, num_edits=len(group)):
                made = await asyncio.to_thread(self.shop.make, docket.batch(group).edits)
        except EditRejected as refusal:
            return docket.refused(group, refusal.with_traceback(None))  # the traceback would hold the update
        return await self._publish(made, time.perf_counter() - begin, traces)

    async def _publish(self, made: Made, edit_s: float, traces: Sequence[str | None]) -> Version:
        """Append it and have it served. Raises `LedgerConflict`, and `Unloadable` after the head was put back."""
        begin = time.perf_counter()
        before = self.shop.ledger.head
        with batch_span("errata.append", traces):
            version = await asyncio.to_thread(self.shop.append, made)
        append_s = time.perf_counter() - begin
        guard_s = version.scorecard.get("guard_s", 0.0)
        self.audience.feed.tell("version", {"version": version.number, "parent": version.parent, "num_edits": len(made.edits)})
        self.audience.feed.tell("head", {"head": version.number, "before": before})
        timing = {"version": version.number, "num_edits": len(made.edits), "edit_s": round(edit_s, 4)}
        timing |= {"append_s": round(append_s, 4)} | await self._serve(version, before, traces)
        if "reverted" not in version.scorecard:
            self.metrics.published(len(made.edits), edit_s - guard_s, guard_s, append_s)
        self.timings.append(timing)
        self.outbox.wake()
        return version

    async def _serve(self, version: Version, before: int, traces: Sequence[str | None]) -> dict[str, Any]:
        """Swap it in; how long that took. Raises `Unloadable`; replicas that are late follow by themselves."""
        begin = time.perf_counter()
        found: dict[str, Any] = {"swap_at": time.time()}
        try:
            with batch_span("errata.swap", traces, version=version.number):
                await self.fleet.swap(version)
        except Unloadable:
            self.metrics.swap_failed()
            await self._withdraw(version.number, before)
            await self._return()
            raise
        except SwapFailed as fault:  # the edit is made and durable
            self.metrics.swap_failed()
            found["swap_error"] = str(fault)
            event(logger, "swap.late", logging.ERROR, version=version.number, replicas=fault.replicas, error=fault)
        swap_s = time.perf_counter() - begin
        self.metrics.swapped(swap_s)
        replicas = [replica for replica in self.fleet.replicas if replica.get("bytes")]
        sizes = {name: replica[name] for replica in replicas[:1] for name in ("bytes", "dense_bytes")}
        return {"swap_ms": round(swap_s * 1e3, 2), **sizes, **found}

    async def _return(self) -> None:
        """Replicas that went ahead come back to the head; those that do not answer do so by themselves."""
        try:
            await self.fleet.swap(self.head)
        except SwapFailed as fault:
            logger.error("%s", fault)


def _edit_of(entry: Entry) -> Edit:
    return Edit.from_json({**entry.edit, "poster": entry.poster} if entry.poster else entry.edit)
