"""The single writer: takes queued edits in small batches, makes them, appends a version, has every replica serve it.

The journal says what was accepted, the ledger what was made. A crash between the two is settled at start by the edits'
ids; a crash between the append and the swap by the replicas, which follow the ledger's head by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from errata.docket import Docket, Group, Settled
from errata.edit import Edit, EditRejected, check_edits
from errata.generate import SwapFailed
from errata.ledger import LedgerConflict, Version
from serving.journal import Entry, Journal
from serving.workshop import Workshop, WorkshopOptions

logger = logging.getLogger("ray.serve")

SWAP_ATTEMPTS = 5
SWAP_TIMEOUT_S = 10.0
MIRROR_PERIOD_S = 5.0
NUM_TIMINGS = 200


@dataclass(frozen=True)
class WorkerOptions:
    """`max_batch` edits at most go into one version, and none waits longer than `batch_window_s` for company."""

    workshop: WorkshopOptions
    journal: str
    max_batch: int = 16
    batch_window_s: float = 0.02
    wait_timeout_s: float = 60.0
    mlflow: str | None = None
    mlflow_name: str = "errata"


class EditWorker:
    """Serve deployment, one replica. The loop `_work` and `rollback` exclude each other by `_writing`."""

    async def __init__(self, options: WorkerOptions) -> None:  # type: ignore[misc]  # Serve awaits it
        self.options = options
        self.shop = await asyncio.to_thread(Workshop, options.workshop)
        self.journal = Journal(options.journal)
        self._writing = asyncio.Lock()
        self._arrived = asyncio.Event()
        self._settled = asyncio.Condition()
        self._appended = asyncio.Event()
        self.timings: deque[dict[str, Any]] = deque(maxlen=NUM_TIMINGS)
        self.replicas: list[dict[str, Any]] = []
        self.mirrored: dict[str, Any] = {}
        self._unserved = False
        self._reconcile()
        self._worker = asyncio.create_task(self._work())
        self._worker.add_done_callback(_end_process)
        if options.mlflow is not None:
            self._mirrorer = asyncio.create_task(self._mirror(options.mlflow))
            self._mirrorer.add_done_callback(_report)

    def _reconcile(self) -> None:
        """What a dead predecessor was making is either in the ledger already, or queued again."""
        for entry in self.journal.pending():
            version = self.shop.ledger.find_edit(entry.id)
            if version is not None:
                self.journal.finish([entry.id], version)
        self.journal.requeue_applying()
        self._arrived.set()

    # -- called by the replicas ---------------------------------------------------------------------------------------

    async def submit(self, edits: list[dict[str, Any]], wait: bool, key: str | None) -> list[dict[str, Any]]:
        """Queue the edits durably; with `wait`, until they are served, refused, or `wait_timeout_s` has passed.

        Raises `EditRejected` before anything is queued, `KeyReused`, and `SwapFailed` if the edits are made and durable but
        replicas do not serve them yet.
        """
        check_edits([Edit.from_json(edit) for edit in edits], self.shop.model.tokenizer, self.shop.max_tokens)
        ids = self.journal.submit(edits, key)
        self._arrived.set()
        if wait:
            await self._until_settled(ids)
            await self._until_served()
        return [self.journal.get(id).to_json() for id in ids]

    async def _until_settled(self, ids: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(self.options.wait_timeout_s), self._settled:
                await self._settled.wait_for(lambda: all(self.journal.get(id).is_settled for id in ids))
        except TimeoutError:
            logger.warning("%d edits were not settled in %s s", len(ids), self.options.wait_timeout_s)

    async def _until_served(self) -> None:
        """A swap that failed is tried once more. Raises `SwapFailed`."""
        if self._unserved:
            async with self._writing:
                await self._broadcast(self.shop.ledger.version(self.shop.ledger.head))

    async def edit_status(self, id: str) -> dict[str, Any]:
        return self.journal.get(id).to_json()

    async def rollback(self, version: int) -> dict[str, Any]:
        """Serve an earlier version, or once more a later one. Raises `UnknownVersion`, `SwapFailed`."""
        async with self._writing:
            await asyncio.to_thread(self.shop.move_to, version)
            begin = time.perf_counter()
            await self._broadcast(self.shop.ledger.version(version))
            self._appended.set()
        return {"version": version, "swap_ms": round((time.perf_counter() - begin) * 1e3, 2)}

    async def ready(self) -> None:
        """Returns once the ledger is there."""

    async def status(self) -> dict[str, Any]:
        ledger = self.shop.ledger
        replicas = await self._generators().broadcast("status").results_async(timeout_s=SWAP_TIMEOUT_S)
        return {
            "head": ledger.head,
            "newest": ledger.newest,
            "queue_depth": self.journal.depth,
            "replicas": replicas,
            "timings": list(self.timings),
            "mirror": self.mirrored,
            "worker": {"pid": os.getpid(), "editor": self.options.workshop.editor},
        }

    async def check_health(self) -> None:
        if self._worker.done():
            raise RuntimeError("the edit worker's loop has ended")

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Waits for `_arrived`, then for company within the batch window; is unblocked by `submit`."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while (depth := self.journal.depth) > 0:
                if depth < self.options.max_batch:
                    await asyncio.sleep(self.options.batch_window_s)
                await self._apply(self.journal.take(self.options.max_batch))

    async def _apply(self, entries: list[Entry]) -> None:
        """A version of these edits; if they are refused, several of what is left without those that are to blame.

        Between two attempts a rollback may come in: what follows is made on the version that it went to.
        """
        edits = [Edit.from_json(entry.edit) for entry in entries]
        docket = Docket(edits)
        while (group := docket.next_group()) is not None:
            async with self._writing:
                try:
                    settled = await self._try(docket, group)
                except LedgerConflict as fault:
                    logger.error("%s; the edits are made again on the new head", fault)
                    self.journal.requeue([entries[i].id for i in (*group, *docket.left())])
                    return await asyncio.to_thread(self.shop.move_to, self.shop.ledger.head)
                if not isinstance(settled, Version):
                    await self._refuse([(entries[i], edits[i], why) for i, why in settled])
                    continue
                self.journal.finish([entries[i].id for i in group], settled.number)
                await self._refuse([(entries[i], edits[i], why) for i, why in docket.made(group)])

    async def _try(self, docket: Docket, group: Group) -> Version | Settled:
        """The version, which is served, or those that are refused now. Raises `LedgerConflict`."""
        begin = time.perf_counter()
        try:
            made = await asyncio.to_thread(self.shop.make, docket.batch(group).edits)
        except EditRejected as refusal:
            return docket.refused(group, refusal.with_traceback(None))  # the traceback would hold the update
        edit_s = time.perf_counter() - begin
        version = await asyncio.to_thread(self.shop.append, made)
        timing = {"version": version.number, "num_edits": len(group), "edit_s": round(edit_s, 4)}
        timing["append_s"] = round(time.perf_counter() - begin - edit_s, 4)
        await self._publish(version, timing)
        return version

    async def _refuse(self, refused: list[tuple[Entry, Edit, EditRejected]]) -> None:
        for entry, edit, why in refused:
            await asyncio.to_thread(self.shop.ledger.refuse, self.shop.version, edit, why)
            self.journal.reject(entry.id, why.reason, why.field)
        async with self._settled:
            self._settled.notify_all()

    async def _publish(self, version: Version, timing: dict[str, Any]) -> None:
        begin = time.perf_counter()
        try:
            await self._broadcast(version)
        except SwapFailed as fault:  # the edit is made and durable; the replicas follow when they can
            self._unserved = True
            timing["swap_error"] = str(fault)
            logger.error("%s", fault)
        timing["swap_ms"] = round((time.perf_counter() - begin) * 1e3, 2)
        replicas = [replica for replica in self.replicas if replica.get("bytes")]
        timing |= {name: replica[name] for replica in replicas[:1] for name in ("bytes", "dense_bytes")}
        self.timings.append(timing)
        self._appended.set()

    # -- the replicas and the mirror ----------------------------------------------------------------------------------

    async def _broadcast(self, version: Version) -> None:
        """Returns when every replica reports the version and its fingerprint. Raises `SwapFailed` naming those that do not."""
        behind, reason = ["any replica"], "none is up"
        for attempt in range(SWAP_ATTEMPTS):
            await asyncio.sleep(0.05 * (2**attempt - 1))
            try:
                response = self._generators().broadcast("swap", version.number)
                self.replicas = await response.results_async(timeout_s=SWAP_TIMEOUT_S)
            except (RayError, RayServeException, TimeoutError) as error:
                reason = type(error).__name__
                continue
            late = [r for r in self.replicas if (r["version"], r["fingerprint"]) != (version.number, version.fingerprint)]
            if self.replicas and not late:
                self._unserved = False
                return
            behind = [r["replica"] for r in late] or behind
            reason = "; ".join(r.get("error", f"it has version {r['version']}") for r in late) or reason
        raise SwapFailed(version.number, behind, reason)

    def _generators(self) -> DeploymentHandle[Any]:
        return serve.get_deployment_handle("Generator", serve.get_replica_context().app_name)

    async def _mirror(self, uri: str) -> None:
        """Copies new versions to MLflow; is unblocked by an append, and every few seconds to catch up after an outage."""
        from errata.registry import Registry, RegistryUnavailable  # here, since importing MLflow takes seconds

        registry = await asyncio.to_thread(Registry, uri, self.options.mlflow_name)
        while True:
            try:
                await asyncio.to_thread(registry.mirror, self.shop.ledger)
                self.mirrored = {"version": self.shop.ledger.newest, "error": None}
            except RegistryUnavailable as fault:
                self.mirrored = {**self.mirrored, "error": str(fault)}
                logger.warning("MLflow cannot be reached, edits go on: %s", fault)
            try:
                async with asyncio.timeout(MIRROR_PERIOD_S):
                    await self._appended.wait()
            except TimeoutError:
                continue
            self._appended.clear()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.error("a background task of the edit worker has failed", exc_info=task.exception())


def _end_process(task: asyncio.Task[None]) -> None:
    """The loop ends only by a fault: Serve then replaces the process, which starts from journal and ledger."""
    _report(task)
    if not task.cancelled():
        os._exit(1)
