"""The single writer: the methods that the generators call.

`EditLoop` does the work. Edits are in the journal before `submit` returns; later states reach waiting posts and event streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from errata.edit import SETTLED, Code, Edit, EditRejected, Fault
from errata.history.budget import WalkBudget
from errata.history.revert_selection import RevertRefused
from errata.ledger import Version
from errata.local.consolidation_policy import DEFAULT, policy_from
from errata.local.service_limits import ServiceLimits
from errata.model.edit_check import check_edits
from errata.model.renderer import Renderer
from errata.text.dialogue import Prompt
from serving.logs import event
from serving.metrics import WORKER
from serving.tracing import current_traceparent
from serving.worker.dry_run import Chosen, DryRuns
from serving.worker.edit_loop import EditLoop
from serving.worker.events import TooManyListeners
from serving.worker.journal import Journal, JournalFailed, UnknownEdit
from serving.worker.journal_copies import make_copies
from serving.worker.journal_entry import event_of
from serving.worker.known_edits import KnownEdits
from serving.worker.live_model import LiveModel, LiveModelOptions
from serving.worker.mlflow_mirror import MlflowMirrorTask
from serving.worker.proposals import ProposalBook, ProposalQuery
from serving.worker.queue_limit import QueueFull, QueueLimit
from serving.worker.refusals import Busy
from serving.worker.replicas import Replicas
from serving.worker.scrub import Scrubber
from serving.worker.walks import walked

logger = logging.getLogger("errata")

MAX_RETRY_AFTER_S = 60
MAX_BATCH, BATCH_WINDOW_S = 16, 0.02  # Of editors that ask the model; others take as many edits as they can, and wait for none.


@dataclass(frozen=True)
class WorkerOptions:
    """Settings of the edit worker.

    A version holds at most `max_batch` edits, and an edit waits at most `batch_window_s` for others; None leaves both to the
    editor. `nice` is the worker's scheduling priority; a higher value yields to engines on the same cores. An Idempotency-Key
    is kept for `idempotency_hours`. The ledger's files are compared with their digests every `scrub_hours`; 0 is never. With
    `shares_cores`, engines leave the editor its cores while edits are made. `consolidate` is a `ConsolidationPolicy`.
    """

    live_model: LiveModelOptions
    journal: str
    max_batch: int | None = None
    batch_window_s: float | None = None
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    nice: int = 10
    shares_cores: bool = False
    idempotency_hours: float = 24.0
    scrub_hours: float = 24.0
    mlflow: str | None = None
    mlflow_name: str = "errata"
    consolidate: str = DEFAULT


class EditWorker:
    """The edit worker over its parts; `start` settles the journal and starts the tasks beside the requests."""

    def __init__(
        self,
        live_model: LiveModel,
        journal: Journal,
        mirror: MlflowMirrorTask,
        options: WorkerOptions,
        replicas: Replicas | None = None,
    ) -> None:
        self.live_model, self.journal, self.mirror, self.options = live_model, journal, mirror, options
        self.limits = options.limits
        max_batch, window_s = (live_model.max_batch, 0.0) if live_model.knows_answers else (MAX_BATCH, BATCH_WINDOW_S)
        batches = options.max_batch or max_batch, window_s if options.batch_window_s is None else options.batch_window_s
        self.edit_loop = EditLoop(live_model, journal, mirror, *batches, replicas, options.limits)
        self.edit_loop.core_sharing.is_on = options.shares_cores and not live_model.knows_answers
        self.edit_loop.consolidate(policy_from(options.consolidate), options.shares_cores)
        # Two threads must not share a tokenizer, because a call changes its settings: the editor uses the live model's own.
        tokenizer = copy.deepcopy(live_model.model.tokenizer)
        self._renderer, self._checking = Renderer(tokenizer, live_model.model.end_ids), asyncio.Lock()
        self._walking = asyncio.Lock()
        self.known_edits = KnownEdits(live_model, journal)
        self.proposal_book = ProposalBook(journal)
        self.links: dict[str, str] = {}
        self.dry_runs = DryRuns(self.edit_loop, self.limits.max_walk_s)
        self.scrubber = Scrubber(options.live_model.ledger if options.live_model else "", options.scrub_hours)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Reconcile the journal with the ledger, then start the tasks: edit loop, follower of the replicas, copies, mirror."""
        self.edit_loop.reconciler.reconcile()
        work = (*self.edit_loop.tasks(), make_copies(self.journal), self.scrubber.work())
        self._tasks = [asyncio.create_task(one) for one in work]
        for task in self._tasks:
            task.add_done_callback(_end_process)
        self.edit_loop.core_sharing.notify()
        self.mirror.start()

    # -- called by the replicas: edits --------------------------------------------------------------------------------

    async def submit(
        self, edits: list[dict[str, Any]], wait: bool, key: str | None, poster: str | None = None
    ) -> list[dict[str, Any]]:
        """Queue edits durably; with `wait`, return when they are served or refused, or after `wait_timeout_s`.

        Raises `EditRejected`, `KeyReused`, `QueueFull` or `JournalFailed` before anything is queued, and `SwapFailed` if the
        edits are made and durable but some replicas do not serve them yet. Once they are queued they are answered as such, even
        if the journal can be read no more.
        """
        posted = self._read(edits)
        contradicts = await self._check(posted)
        edits = [edit.to_json() for edit in posted]
        try:
            depth = self.journal.depth
            limit = QueueLimit(self.limits.max_queue, self.limits.max_queue_bytes)
            ids = self.journal.submit(edits, key, poster, current_traceparent(), limit, contradicts)
        except QueueFull as full:
            raise QueueFull(full.used, full.added, full.limit, self._seconds_for(len(edits)), full.setting) from None
        event(logger, "edit.queued", edit_ids=ids, by=poster)
        self.edit_loop.wake()
        try:
            self.edit_loop.metrics.settled("queued", self.journal.depth - depth)  # 0 for a repeated key.
            self.edit_loop.waiters.publish(ids)
            if wait:
                await self._until_settled(ids)
                await self.edit_loop.publisher.served()
            answers = self.journal.answer(ids, key, poster)
            lives = await asyncio.to_thread(self.known_edits.lives, [self.journal.get(id) for id in ids])
            return [answer | live for answer, live in zip(answers, lives, strict=True)]
        except JournalFailed as fault:
            event(logger, "edits.stalled", logging.ERROR, error=fault, num_edits=len(ids))
            return [_as_queued(id, edit) for id, edit in zip(ids, edits, strict=True)]

    async def dry_run(self, edits: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a post of these edits would do, and do nothing. Raises as `submit` before it queues, and as `DryRuns`."""
        posted = self._read(edits)
        contradicts = await self._check(posted)
        return await self.dry_runs.of(posted, self._walking, contradicts)

    def _read(self, posted: Sequence[dict[str, Any]]) -> list[Edit]:
        """Read posted edits. Raises `EditRejected` with the faults of all that cannot be read."""
        read, faults = [], list[Fault]()
        for index, edit in enumerate(posted):
            try:
                read.append(self._in_form(edit))
            except EditRejected as refused:
                faults += [replace(fault, edit=index) for fault in refused.faults]
        if faults:
            raise EditRejected.of(faults)
        return read

    def _in_form(self, posted: dict[str, Any]) -> Edit:
        """Read a posted edit; one that names no form is asked in the model's own. Raises `EditRejected`."""
        named = any(posted.get(name) is not None for name in ("form", "question", "messages"))
        return Edit.from_json(posted if named else {**posted, "form": self._renderer.form})

    async def _check(self, edits: Sequence[Edit]) -> dict[int, list[str]]:
        """Check edits in a thread, because a thousand take a third of a second; the lock keeps posts in their order.

        Returns the ids of the edits that some of them, by position, contradict.
        """
        async with self._checking:
            await asyncio.to_thread(check_edits, edits, self._renderer, self.live_model.max_tokens)
            self.live_model.expect(edits)
            return await asyncio.to_thread(self.known_edits.contradicted, edits)

    def _seconds_for(self, num_edits: int) -> int:
        """Estimate the whole seconds, at least 1, until so many edits are made, from the timings of the last versions."""
        timings = [timing for timing in self.edit_loop.publisher.timings if timing["num_edits"]]
        spent = sum(t["edit_s"] + t["append_s"] + t["swap_ms"] / 1e3 for t in timings)
        made = sum(t["num_edits"] for t in timings)
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(num_edits * spent / max(made, 1))))

    async def _until_settled(self, ids: Sequence[str]) -> None:
        with self.edit_loop.waiters.waiter(ids) as waiter:
            try:
                async with asyncio.timeout(self.limits.wait_timeout_s):
                    await waiter.done.wait()
            except TimeoutError:
                logger.warning("%d edits were not settled in %s s", len(waiter.open_ids), self.limits.wait_timeout_s)

    async def edit_status(self, id: str) -> dict[str, Any]:
        """Return an edit with its state and, once it is applied, the answers before and after it, and if it is answered now."""
        (found,) = await self.known_edits.shown([self.journal.get(id)])
        if found.get("live"):
            found |= self.live_model.answered(id)
        version = self.live_model.ledger.find_edit(id)
        answers = None if version is None else _answers_in(self.live_model.ledger.version(version), id)
        return found if answers is None else found | {"answers": answers}

    async def edits(self, state: str | None, limit: int, before: int | None, subject: str | None = None) -> dict[str, Any]:
        """List edits, newest first, up to the limit of a page; `next` is the cursor of the following page, None at the end.

        With `subject`, those of one subject.
        """
        found = self.journal.newest(limit, state, before, self.limits.max_page_bytes, subject)
        has_more = bool(found) and self.journal.has_older(found[-1].seq, state, subject)
        return {"edits": await self.known_edits.shown(found), "next": found[-1].seq if has_more else None}

    async def edit_events(self, id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield (state, event) for the present state and every later one until the edit is settled; a refusal is an `error`."""
        try:
            with self.edit_loop.waiters.event_bus.listener([id]) as listener:
                entry = self.journal.get(id)
                yield entry.state, event_of(entry)
                if entry.is_settled:
                    return
                async for heard in listener:
                    state = heard.data.get("state", heard.kind)
                    yield state, heard.data
                    if state in SETTLED:
                        return
        except (TooManyListeners, UnknownEdit, JournalFailed) as refused:
            yield "error", {"message": str(refused)}

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield `listening` with the live version, and then (kind, data) for every event from this moment on."""
        try:
            with self.edit_loop.waiters.event_bus.listener() as listener:
                yield "listening", {"head": self.live_model.ledger.head}
                async for heard in listener:
                    yield heard.kind, heard.data
        except TooManyListeners as many:
            yield "error", {"message": str(many)}

    # -- called by the replicas: proposals ----------------------------------------------------------------------------

    async def propose(self, edits: list[dict[str, Any]], key: str | None, author: str | None) -> list[dict[str, Any]]:
        """Keep edits as proposals, durably. Raises as `submit` before it queues."""
        posted = self._read(edits)
        await self._check(posted)
        limit = QueueLimit(self.limits.max_proposals, self.limits.max_proposal_bytes)
        made = self.proposal_book.add([edit.to_json() for edit in posted], key, author, limit)
        event(logger, "proposal.made", edit_ids=[one.id for one in made], by=author)
        for one in made:
            self.edit_loop.waiters.event_bus.publish("proposal", one.to_event())
        return [one.to_json() for one in made]

    async def proposals(self, asked: ProposalQuery) -> dict[str, Any]:
        """List proposals, up to the limit of a page; `next` is the cursor of the next page, None at the end."""
        found, cursor = self.proposal_book.page(asked, self.limits.max_page_bytes)
        return {"proposals": [one.to_json() for one in found], "next": cursor}

    async def proposal(self, id: str) -> dict[str, Any]:
        """Return one proposal. Raises `UnknownProposal`."""
        return self.proposal_book.get(id).to_json()

    async def decide(self, id: str, approve: bool, by: str | None, reason: str | None) -> dict[str, Any]:
        """Approve a proposal, which queues its edit, or refuse it. Raises as `ProposalBook` does.

        An edit that today's rules refuse cannot be approved (`EditRejected`).
        """
        if approve:
            contradicts = await self._check(self._read([self.proposal_book.get(id).edit]))
            limit = QueueLimit(self.limits.max_queue, self.limits.max_queue_bytes)
            decided = self.proposal_book.approve(id, by, reason, limit, current_traceparent(), contradicts.get(0, ()))
            self.edit_loop.wake()
            self.edit_loop.metrics.settled("queued", 1)
            self.edit_loop.waiters.publish([id])
            event(logger, "proposal.approved", edit_ids=[id], by=by)
        else:
            decided = self.proposal_book.refuse(id, by, reason)
            event(logger, "proposal.refused", edit_ids=[id], by=by)
        self.edit_loop.waiters.event_bus.publish("proposal", decided.to_event())
        return decided.to_json()

    # -- called by the replicas: versions --------------------------------------------------------------------------

    async def rollback(self, version: int, by: str | None = None, expected_head: int | None = None) -> dict[str, Any]:
        return await self.edit_loop.to_completion(self.edit_loop.rollback(version, by, expected_head))

    async def revert(
        self, edits: list[str], versions: list[int], mode: str, by: str | None = None, expected_head: int | None = None
    ) -> dict[str, Any]:
        with self._accepted(edits):
            return await self.edit_loop.to_completion(self.edit_loop.revert(edits, versions, mode, by, expected_head))

    async def dry_run_revert(
        self, edits: list[str], versions: list[int], mode: str, expected_head: int | None = None
    ) -> dict[str, Any]:
        """Return what a revert would do, and do nothing. Raises as `revert` before it publishes, and as `DryRuns`."""
        with self._accepted(edits):
            return await self.dry_runs.of_revert(Chosen(edits, versions, mode), expected_head, self._walking)

    @contextlib.contextmanager
    def _accepted(self, edits: Sequence[str]) -> Iterator[None]:
        """Say of an edit that was accepted here and is in no version that it is not live. Raises `UnknownEdit` for others."""
        for id in edits:
            self.journal.get(id)
        try:
            yield
        except RevertRefused as refused:
            if refused.code is Code.UNKNOWN_EDIT and refused.edit in edits:
                raise RevertRefused(refused.reason, code=Code.NOT_LIVE, edit=refused.edit, field=refused.field) from None
            raise

    async def blame(self, prompt: Prompt, max_tokens: int) -> dict[str, Any]:
        """Find the version behind the live answer to a prompt, on a copy of the live model; one call at a time. Raises `Busy`.

        A call that is cancelled stops the walk. Raises `WalkTooLong` beyond the limits of a walk.
        """
        if self._walking.locked():
            raise Busy("the service is tracing an answer to its version or trying edits; ask again when that is done")
        async with self._walking:
            walk = await self.edit_loop.to_completion(self.edit_loop.walk())
            budget = WalkBudget(self.limits.max_walk_versions, self.limits.max_walk_s, self.edit_loop.writing.locked)
            return (await walked(partial(walk.blame, prompt, max_tokens), budget)).to_json()

    # -- called by the replicas: state --------------------------------------------------------------------------------

    async def ready(self) -> str | None:
        """Return why no edits are made at the moment, or None. When this answers, the ledger exists."""
        return self.edit_loop.stalled

    async def highest_version(self) -> int:
        """Return the next version's number, which may be a revert's or a repair's under way, plus one for each open edit."""
        return self.live_model.ledger.next_number + self.journal.num_open

    async def status(self) -> dict[str, Any]:
        ledger = self.live_model.ledger
        return {
            "head": ledger.head,
            "newest": ledger.newest,
            "queue_depth": self.journal.depth,
            "queue": {
                "depth": self.journal.depth,
                "age_s": round(self.journal.age_s, 3),
                "limit": self.limits.max_queue,
            },
            "proposals": {"open": self.proposal_book.num_open, "limit": self.limits.max_proposals},
            "stalled": self.edit_loop.stalled,
            "held_edits": self.live_model.held_counts,
            "replicas": await self.edit_loop.publisher.replicas.ask("status"),
            "timings": list(self.edit_loop.publisher.timings),
            "mirror": self.mirror.state,
            "scrub": self.scrubber.state,
            "links": self.links | self.mirror.links,
            "worker": {
                "pid": os.getpid(),
                "editor": self.options.live_model.editor,
                "form": self._renderer.form,
                "ledger": str(ledger.directory),
            },
        }

    async def expositions(self) -> dict[str, str]:
        """Prometheus expositions by replica name; the worker's own is under `WORKER`."""
        replicas = await self.edit_loop.publisher.replicas.ask("exposition")
        metrics, ledger = self.edit_loop.metrics, self.live_model.ledger
        metrics.waiting(self.journal.depth, self.journal.age_s)
        metrics.versions(ledger.head, ledger.newest, {replica: version for replica, version, _ in replicas})
        metrics.mirrored(self.mirror.behind)
        metrics.held(**self.live_model.held_counts)
        metrics.carried(**self.live_model.carried_counts)
        metrics.damaged(len(self.scrubber.state.get("damaged", ())))
        return {WORKER: metrics.exposition()} | {replica: text for replica, _, text in replicas}

    async def check_health(self) -> None:
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a task of the edit worker has ended; the process must be replaced")


def _as_queued(id: str, edit: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of an edit that was queued, and of which no more is known."""
    return {"id": id, "state": "queued", "edit": {**edit, "id": id}, "created": time.time()}


def _answers_in(version: Version, id: str) -> dict[str, str] | None:
    """Return the answers before (if it is known) and after an edit, which the scorecard has in the order of the edits."""
    pairs = version.scorecard.get("answers", [])
    for edit, (before, after) in zip(version.edits, pairs, strict=False):
        if edit.id == id:
            return {name: text for name, text in (("before", before), ("after", after)) if text is not None}
    return None


def _end_process(task: asyncio.Task[None]) -> None:
    """End the process with a loop that failed; Serve replaces it, and the new process resumes from journal and ledger."""
    if not task.cancelled():
        logger.error("the edit worker's loop has failed", exc_info=task.exception())
        os._exit(1)
