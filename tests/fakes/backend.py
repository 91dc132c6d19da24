"""Backends of the routes without a model: one that follows rules on a real journal, and one with a fixed answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from errata.edit import Code, Edit, EditRejected, Fault
from errata.ledger import HeadMoved, UnknownVersion, Version
from errata.model.edit_check import check_edits
from errata.text.dialogue import Prompt
from serving.api.routes import versions_page
from serving.metrics import ReplicaMetrics
from serving.worker.events import EventBus
from serving.worker.journal import Journal
from serving.worker.journal_entry import event_of
from serving.worker.proposals import ProposalBook, ProposalQuery
from serving.worker.queue_limit import QueueLimit

# Targets that are refused before they are queued, and when they are made.
UNQUEUED, UNMADE = "too long", "unlearnable"
CONTRADICTING = "another"  # The target of an edit that contradicts the edit `other`.
SAYS = "What the model says instead of `UNMADE`"


def version(number: int, edits: Sequence[dict[str, Any]] = ()) -> Version:
    made = tuple(Edit.from_json(edit) for edit in edits)
    parent = None if number == 0 else number - 1
    card = {"efficacy": 0.5, "num_edits": len(made), "method": "free"}
    return Version(number, parent, "Toy", "", "f", "2026-01-01", made, card, 4096, {"m": 1}, {"m": 0.5}, Path())


def page_of(head: int, chain: Sequence[Version], limit: int, before: int | None) -> dict[str, Any]:
    """Make a page as the service's backend does, without a limit in bytes."""
    found = [one for one in reversed(chain) if before is None or one.number < before]
    return versions_page(head, chain[-1].number, found, limit, 2**62)


class Backend:
    """A backend that makes a version of each post immediately, or in `make` while `held`. Answers have real shapes."""

    metrics, running_epoch = ReplicaMetrics(), 0

    def __init__(self, directory: Path, max_queue: int = 10_000) -> None:
        self.journal, self.event_bus, self.max_queue = Journal(directory / "journal.sqlite"), EventBus(), max_queue
        self.proposal_book = ProposalBook(self.journal)
        self.chain, self.head, self.held, self.reasons = [version(0)], 0, False, list[str]()
        self.posts: list[tuple[str | None, list[dict[str, Any]], bool]] = []
        self.late: dict[str, str] = {}  # what a rollback and a revert answer about late replicas

    @property
    def version(self) -> int:
        return self.head

    async def admit(self, at_least: int) -> str:
        return "salt"

    async def submit(self, edits: list[dict[str, Any]], wait: bool, key: str | None, by: str | None) -> list[dict[str, Any]]:
        self.posts.append((key, edits, wait))
        self.loop = asyncio.get_running_loop()
        check_edits([Edit.from_json(edit) for edit in edits])
        if too_long := [index for index, edit in enumerate(edits) if edit["target"] == UNQUEUED]:
            raise EditRejected.of(Fault(index, "target", Code.TOO_LONG, "has 99 tokens") for index in too_long)
        contradicts = {i: ["other"] for i, edit in enumerate(edits) if edit["target"] == CONTRADICTING}
        ids = self.journal.submit(edits, key, by, limit=QueueLimit(self.max_queue), contradicts=contradicts)
        for id in ids:
            self.publish(id)
        while self.held and wait:
            await asyncio.sleep(0.01)
        if not self.held:
            self.make()
        return [self.journal.get(id).to_json() for id in ids]

    async def dry_run(self, edits: list[dict[str, Any]]) -> dict[str, Any]:
        check_edits([Edit.from_json(edit) for edit in edits])
        rows: list[dict[str, Any]] = []
        for edit in edits:
            row = {"edit": edit, "state": "applied", "changed": True, "before": "Paris", "after": edit["target"]}
            if edit["target"] == CONTRADICTING:
                row |= {"contradicts": ["other"]}
            if edit["target"] == UNMADE:
                row |= {"state": "rejected", "code": "guard.perplexity", "reason": "it would break the model", "after": SAYS}
            rows.append(row)
        figures = {"edits": list(range(len(edits))), "publish": True, "breaches": [], "warnings": ["drift"], "limits": {}}
        lost = {"id": "e", "prompt": "q", "before": "a", "after": "b", "target": "a", "lost": True}
        near = {"edits": [lost], "probes": [], "num_edits_asked": 1, "num_edits": 1, "num_probes": 0}
        guard = [{**figures, "scores": {"locality": 0.975}}]
        return {"dry_run": True, "head": self.head, "edits": rows, "guard": guard, "neighbours": near}

    async def propose(self, edits: list[dict[str, Any]], key: str | None, by: str | None) -> list[dict[str, Any]]:
        check_edits([Edit.from_json(edit) for edit in edits])
        limit = QueueLimit(self.max_queue)
        made = self.proposal_book.add([Edit.from_json(edit).to_json() for edit in edits], key, by, limit)
        for one in made:
            self.event_bus.publish("proposal", one.to_event())
        return [one.to_json() for one in made]

    async def proposals(self, asked: ProposalQuery) -> dict[str, Any]:
        found, cursor = self.proposal_book.page(asked)
        return {"proposals": [one.to_json() for one in found], "next": cursor}

    async def proposal(self, id: str) -> dict[str, Any]:
        return self.proposal_book.get(id).to_json()

    async def decide(self, id: str, approve: bool, by: str | None, reason: str | None) -> dict[str, Any]:
        if approve:
            decided = self.proposal_book.approve(id, by, reason, QueueLimit(self.max_queue))
            self.publish(id)
            self.make()
        else:
            decided = self.proposal_book.refuse(id, by, reason)
        self.event_bus.publish("proposal", decided.to_event())
        return decided.to_json()

    def publish(self, id: str) -> None:
        self.event_bus.publish("edit", event_of(self.journal.get(id)))

    def make(self) -> None:
        while entries := self.journal.take(1000):
            for entry in entries:
                self.publish(entry.id)
            good = [entry for entry in entries if entry.edit["target"] != UNMADE]
            for entry in entries:
                if entry not in good:
                    self.journal.reject(entry.id, "it would break the model", "target", Code.GUARD_PERPLEXITY, SAYS)
            if good:
                self.chain.append(version(len(self.chain), [entry.edit for entry in good]))
                self.journal.finish([entry.id for entry in good], len(self.chain) - 1)
                self.move(len(self.chain) - 1)
                made = self.chain[-1]
                self.event_bus.publish("version", {"version": made.number, "parent": made.parent, "num_edits": len(good)})
            for entry in entries:
                self.publish(entry.id)

    def move(self, number: int) -> None:
        before, self.head = self.head, number
        self.event_bus.publish("head", {"head": number, "before": before})

    async def edits(self, state: str | None, limit: int, before: int | None, subject: str | None = None) -> dict[str, Any]:
        found = self.journal.newest(limit + 1, state, before, subject=subject)
        shown = found[:limit]
        return {"edits": [entry.to_json() for entry in shown], "next": shown[-1].seq if len(found) > limit else None}

    async def edit_status(self, id: str) -> dict[str, Any]:
        return self.journal.get(id).to_json()

    async def edit_events(self, id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        with self.event_bus.listener([id]) as listener:
            entry = self.journal.get(id)
            yield entry.state, event_of(entry)
            if entry.is_settled:
                return
            async for event in listener:
                yield event.data["state"], event.data
                if event.data["state"] in ("applied", "rejected"):
                    return

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        with self.event_bus.listener() as listener:
            yield "listening", {"head": self.head}
            async for event in listener:
                yield event.kind, event.data

    async def rollback(self, version: int, by: str | None, expected_head: int | None = None) -> dict[str, Any]:
        self.version_with_edits(version)
        self.check_head(expected_head)
        self.move(version)
        return {"version": version, "swap_ms": 12.5, **self.late}

    def check_head(self, expected: int | None) -> None:
        if expected is not None and expected != self.head:
            raise HeadMoved(expected, self.head)

    def _chosen(self, edits: list[str], versions: list[int]) -> list[str]:
        ids = edits + [edit.id for number in versions for edit in self.version_with_edits(number).edits if edit.id]
        if not ids:
            raise EditRejected("nothing is chosen", code=Code.NOTHING_CHOSEN, field="edits")
        for id in ids:
            self.journal.get(id)
        return ids

    async def revert(
        self, edits: list[str], versions: list[int], mode: str, by: str | None, expected_head: int | None = None
    ) -> dict[str, Any]:
        self.check_head(expected_head)
        ids = self._chosen(edits, versions)
        self.chain.append(version(len(self.chain)))
        self.journal.mark_reverted(dict.fromkeys(ids, len(self.chain) - 1), {})
        self.move(len(self.chain) - 1)
        answers = [{"prompt": "p", "target": "t", "was": "first", "said": "second", "says": "third"}]
        card = {"retention": 0.75, "reverted_answers": answers, "warnings": []}
        mode = "replay" if mode == "auto" else mode
        return {"version": self.head, "mode": mode, "reverted": ids, **self.late, "scorecard": card}

    async def dry_run_revert(
        self, edits: list[str], versions: list[int], mode: str, expected_head: int | None
    ) -> dict[str, Any]:
        self.check_head(expected_head)
        self._chosen(edits, versions)
        found = {"dry_run": True, "head": self.head}
        if mode == "subtract":
            breach = {"limit": "change", "value": 2.0, "bound": 1.0, "message": "a matrix changes too much"}
            return {**found, "publish": False, "breaches": [breach], "scores": {}, "limits": {}}
        answers = [{"prompt": "p", "target": "t", "was": "first", "said": "second", "says": "third"}]
        lost = {"id": "e", "prompt": "q", "before": "a", "after": "b", "target": "a", "lost": True}
        near = {"edits": [lost], "probes": [], "num_edits_asked": 1, "num_edits": 1, "num_probes": 0}
        card = {"retention": 0.75, "reverted_answers": answers, "warnings": []}
        made = {"publish": True, "mode": "replay", "reverted": edits, "scorecard": card, "neighbours": near}
        return {**found, **made}

    async def blame(self, prompt: Prompt, max_tokens: int) -> dict[str, Any]:
        answer = {"prompt": str(prompt), "num_asked": 3}
        if str(prompt) == "unchanged":
            return answer | {"version": None, "before": None, "after": "so", "edits": []}
        edits = [edit.to_json() for edit in self.chain[-1].edits]
        return answer | {"version": self.head, "before": "cat", "after": "dog", "edits": edits}

    async def diff(self, low: int, high: int) -> dict[str, Any]:
        one, other = self.version_with_edits(low), self.version_with_edits(high)
        added = [edit.to_json() for edit in other.edits]
        return {
            "from": low,
            "to": high,
            "common": min(low, high),
            "added": added,
            "removed": [],
            "answers": [{"prompt": edit["prompt"], "from": "before", "to": edit["target"]} for edit in added],
            "norms": {"layers.3.down_proj": 1.25},
            "scorecard": {"efficacy": [one.scorecard["efficacy"], None]},
        }

    async def unready(self) -> list[str]:
        return self.reasons

    async def all_metrics(self) -> str:
        return ""

    async def service_status(self) -> dict[str, Any]:
        replicas = [{"replica": name, "pid": 7, "version": 0, "intact": name == "a"} for name in ("a", "b")]
        return {
            "head": self.head,
            "newest": len(self.chain) - 1,
            "queue": {"depth": self.journal.depth, "age_s": self.journal.age_s, "limit": self.max_queue},
            "stalled": None,
            "replicas": replicas,
            "timings": [{"version": 1, "num_edits": 2, "swap_ms": 61.234}],
            "mirror": {"version": 1, "error": None},
            "worker": {"pid": 8, "editor": "Toy", "form": "completion"},
        }

    def versions(self, limit: int, before: int | None) -> dict[str, Any]:
        return page_of(self.head, self.chain, limit, before)

    def version_with_edits(self, number: int) -> Version:
        if number >= len(self.chain):
            raise UnknownVersion(f"there is no version {number}")
        return self.chain[number]


class ScriptedBackend:
    """A backend that answers every call with `answer`, or raises it; `seen` has the arguments."""

    def __init__(self, answer: Any = None, num_versions: int = 1) -> None:
        self.answer, self.num_versions = answer, num_versions
        self.seen: list[tuple[Any, ...]] = []

    async def _answer(self, *arguments: Any) -> Any:
        self.seen.append(arguments)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    propose = proposals = proposal = decide = _answer
    submit = dry_run = edits = edit_status = rollback = revert = dry_run_revert = blame = diff = unready = service_status = (
        all_metrics
    ) = _answer

    async def edit_events(self, id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        for state in ("queued", "applied"):
            yield state, entry(id, state)

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        yield "head", {"head": 2, "before": 1}

    def versions(self, limit: int, before: int | None) -> dict[str, Any]:
        self.thread = threading.get_ident()
        return page_of(1, [version(number + 1) for number in range(self.num_versions)], limit, before)

    def version_with_edits(self, number: int) -> Version:
        if number != 1:
            raise UnknownVersion(f"there is no version {number}")
        return version(1, [{"prompt": "p", "target": "t", "id": "e"}])


def entry(id: str, state: str, **more: Any) -> dict[str, Any]:
    """Make an edit's JSON as the journal gives it."""
    return {"id": id, "state": state, "edit": {"prompt": "p", "target": "t"}, "created": 0.0, **more}
