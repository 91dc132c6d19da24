"""A service for the console without a model: it answers by its edits and a few facts, and versions can be gone back from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from errata.access_keys import Keys
from errata.edit import Code, Edit, EditRejected, Fault
from errata.ledger import Version
from errata.local.service_limits import ServiceLimits
from serving.api import routes
from serving.api.access import Access
from serving.console import routes as console
from serving.metrics import ReplicaMetrics, WorkerMetrics
from serving.worker.journal_entry import Entry
from tests.fakes.backend import UNMADE, Backend, version
from tests.fakes.served import running

BATCH = 16
CONTEXT = 400
UNKNOWN = "I do not know that."
LIMITS = {"perplexity": [1.05, 1.5], "forgotten": [0.15, 0.35], "disturbed": [0.05, 0.15], "drift": [0.2, 0.5]}
GAPS = """vllm:inter_token_latency_seconds_bucket{le="0.025",replica="a"} 900.0
vllm:inter_token_latency_seconds_bucket{le="0.05",replica="a"} 990.0
vllm:inter_token_latency_seconds_bucket{le="+Inf",replica="a"} 1000.0
"""


def scorecard(number: int, num_edits: int, answers: list[list[str]]) -> dict[str, Any]:
    """Make a scorecard as the guard does; every seventh version has a warning."""
    changed = 0.02 * (number % 5)
    warnings = ["0.07 of the answers to unrelated questions would change, more than 0.05"] if number % 7 == 6 else []
    scores = {
        "efficacy": 1.0,
        "retention": 1 - 0.01 * (number % 4),
        "locality": 0.97 - changed,
        "ppl_ratio": 1.01 + changed / 4,
    }
    found = {"broken_sentences": 0.0, "lost_retention": 0.01 * (number % 4), "lost_locality": changed}
    matrices = {"relative_norm": {"layers.3.down_proj": 0.12}, "norm_growth": {"layers.3.down_proj": 1.01}}
    shown = {"limits": LIMITS, "warnings": warnings, "num_edits": num_edits, "answers": answers}
    return {**scores, **found, **matrices, **shown, "edit_s": 0.8, "guard_s": 1.9}


class ConsoleBackend(Backend):
    """A backend that makes batches in a task of its own, after `delay_s`, and answers by the edits of the live version.

    An edit to `UNMADE` is rejected. A revert makes a version that takes edits out.
    """

    def __init__(self, directory: Path, known: Mapping[str, str], delay_s: float = 0.02) -> None:
        super().__init__(directory)
        self.known, self.delay_s = dict(known), delay_s
        self.taken_out: dict[int, list[str]] = {}
        self.timings: list[dict[str, Any]] = []
        self.worker_metrics, self.metrics = WorkerMetrics(), ReplicaMetrics()
        self._task: asyncio.Task[None] | None = None

    # -- what the versions hold ---------------------------------------------------------------------------------------

    def chain_to(self, number: int) -> list[Version]:
        found = [self.chain[number]]
        while found[-1].parent is not None:
            found.append(self.chain[found[-1].parent])
        return found[::-1]

    def edits_at(self, number: int) -> dict[str, Edit]:
        """Return the edits that a version holds, by id."""
        edits: dict[str, Edit] = {}
        for one in self.chain_to(number):
            edits |= {edit.id: edit for edit in one.edits if edit.id}
            for id in self.taken_out.get(one.number, ()):
                edits.pop(id, None)
        return edits

    def answer(self, question: str, number: int | None = None) -> str:
        said = self.known.get(question, UNKNOWN)
        for edit in self.edits_at(self.head if number is None else number).values():
            if question in (edit.prompt, *edit.rephrasings):
                said = edit.answer or f"It is {edit.target}."
        return said

    # -- edits --------------------------------------------------------------------------------------------------------

    async def submit(self, edits: list[dict[str, Any]], wait: bool, key: str | None, by: str | None) -> list[dict[str, Any]]:
        read, faults = [], list[Fault]()
        for index, edit in enumerate(edits):
            made = Edit.from_json(edit)
            read.append(made.to_json())
            faults += made.faults(index)
        if faults:
            raise EditRejected.of(faults)
        return await super().submit(read, wait, key, by)

    async def dry_run(self, edits: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer as the service does: an edit changes its own answer, and that of the first fact which the model knows."""
        made = [Edit.from_json(edit) for edit in edits]
        tried = [
            {"edit": edit.to_json(), "unedited": self.answer(edit.prompt, 0), "before": self.answer(edit.prompt)}
            | ({"state": "applied", "changed": True, "after": edit.answer or f"It is {edit.target}."})
            for edit in made
        ]
        card = scorecard(len(self.chain), len(made), [])
        guard = {"edits": [0], "publish": True, "breaches": [], "warnings": card["warnings"], "scores": card, "limits": LIMITS}
        probes = [{"prompt": prompt, "before": said, "after": made[0].target} for prompt, said in list(self.known.items())[-1:]]
        held = len(self.edits_at(self.head))
        asked = {"num_edits_asked": min(64, held), "num_edits": held, "num_probes": len(self.known)}
        neighbours = {"edits": [], "probes": probes, **asked}
        return {"dry_run": True, "head": self.head, "edits": tried, "guard": [guard], "neighbours": neighbours}

    def make(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while entries := self.journal.take(BATCH):
            for entry in entries:
                self.publish(entry.id)
            await asyncio.sleep(self.delay_s)
            self._make_version(entries)
            for entry in entries:
                self.publish(entry.id)

    def _make_version(self, entries: list[Entry]) -> None:
        good = [entry for entry in entries if entry.edit["target"] != UNMADE]
        for entry in entries:
            if entry not in good:
                reason = "the edited model answers something else instead of the target"
                says = self.answer(Edit.from_json(entry.edit).prompt)
                self.journal.reject(entry.id, reason, "target", Code.INEFFECTIVE, says)
        if good:
            before = [self.answer(Edit.from_json(entry.edit).prompt) for entry in good]
            number = self.append([{**entry.edit, "poster": entry.poster, "approver": entry.approver} for entry in good], before)
            self.journal.finish([entry.id for entry in good], number)

    def append(self, edits: list[dict[str, Any]], before: list[str]) -> int:
        """Append a version to the live one and serve it."""
        number, parent = len(self.chain), self.head
        made = version(number, edits)
        after = [edit.answer or f"It is {edit.target}." for edit in made.edits]
        card = scorecard(number, len(edits), [list(pair) for pair in zip(before, after, strict=True)])
        created = f"2026-11-30T{10 + number // 3600 % 12:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000+00:00"
        self.chain.append(replace(made, parent=parent, scorecard=card, created=created, editor="RLEdit", plan="demo"))
        self.timings.append({"version": number, "num_edits": len(edits), "edit_s": 0.8, "swap_ms": 40 + 7.5 * (number % 6)})
        self.event_bus.publish("version", {"version": number, "parent": parent, "num_edits": len(edits)})
        self.move(number)
        return number

    def _shown(self, entry: Entry) -> dict[str, Any]:
        data = entry.to_json()
        if entry.state == "applied":
            data["live"] = entry.id in self.edits_at(self.head)
        return data

    async def edits(self, state: str | None, limit: int, before: int | None, subject: str | None = None) -> dict[str, Any]:
        found = self.journal.newest(limit + 1, state, before, subject=subject)
        live = self.edits_at(self.head)
        shown = [entry.to_json() | ({"live": entry.id in live} if entry.state == "applied" else {}) for entry in found[:limit]]
        return {"edits": shown, "next": found[limit - 1].seq if len(found) > limit else None}

    async def edit_status(self, id: str) -> dict[str, Any]:
        entry = self.journal.get(id)
        found = self._shown(entry)
        if entry.state in ("applied", "reverted"):
            made = next(one for one in self.chain if id in [edit.id for edit in one.edits])
            pair = made.scorecard["answers"][[edit.id for edit in made.edits].index(id)]
            found["answers"] = {"before": pair[0], "after": pair[1]}
        return found

    # -- versions -----------------------------------------------------------------------------------------------------

    async def revert(
        self, edits: list[str], versions: list[int], mode: str, by: str | None, expected_head: int | None = None
    ) -> dict[str, Any]:
        self.check_head(expected_head)
        ids, answers = self._without(edits, versions)
        number = self.append([], [])
        self.taken_out[number] = ids
        self.journal.mark_reverted(dict.fromkeys(ids, number), {})
        card = {**self.chain[number].scorecard, "reverted": {"edits": ids}, "reverted_answers": answers}
        self.chain[number] = replace(self.chain[number], scorecard=card)
        for id in ids:
            self.publish(id)
        return {"version": number, "mode": "replay", "reverted": ids, "scorecard": card}

    async def dry_run_revert(
        self, edits: list[str], versions: list[int], mode: str, expected_head: int | None
    ) -> dict[str, Any]:
        self.check_head(expected_head)
        ids, answers = self._without(edits, versions)
        made = {"publish": True, "mode": "replay", "reverted": ids, "scorecard": {"reverted_answers": answers}}
        neighbours = {"edits": [], "probes": [], "num_edits_asked": 0, "num_edits": 0, "num_probes": len(self.known)}
        return {"dry_run": True, "head": self.head, **made, "neighbours": neighbours}

    def _without(self, edits: list[str], versions: list[int]) -> tuple[list[str], list[dict[str, Any]]]:
        """Return the ids of the chosen edits, and the answers with them and without: the unedited model's."""
        ids = edits + [edit.id for number in versions for edit in self.version_with_edits(number).edits if edit.id]
        asked = [Edit.from_json(self.journal.get(id).edit) for id in ids]
        rows = [(edit, self.answer(edit.prompt, 0), self.answer(edit.prompt)) for edit in asked]
        named = [
            {"prompt": edit.prompt, "target": edit.target, "was": was, "said": said, "says": was} for edit, was, said in rows
        ]
        return ids, named

    async def diff(self, low: int, high: int) -> dict[str, Any]:
        one, other = self.version_with_edits(low), self.version_with_edits(high)
        of_one, of_other = self.edits_at(low), self.edits_at(high)
        numbers = [[version.number for version in self.chain_to(number)] for number in (low, high)]
        names = ("efficacy", "retention", "locality", "ppl_ratio")
        return {
            "from": low,
            "to": high,
            "common": max(set(numbers[0]) & set(numbers[1])),
            "added": [edit.to_json() for id, edit in of_other.items() if id not in of_one],
            "removed": [edit.to_json() for id, edit in of_one.items() if id not in of_other],
            "answers": self._changed_answers(low, high, {edit.prompt for edit in {**of_one, **of_other}.values()}),
            "norms": {"layers.3.down_proj": 1.25},
            "scorecard": {name: [one.scorecard.get(name), other.scorecard.get(name)] for name in names},
        }

    def _changed_answers(self, low: int, high: int, questions: set[str]) -> list[dict[str, str]]:
        said = ({"prompt": text, "from": self.answer(text, low), "to": self.answer(text, high)} for text in sorted(questions))
        return [pair for pair in said if pair["from"] != pair["to"]]

    async def blame(self, prompt: Any, max_tokens: int) -> dict[str, Any]:
        text = prompt if isinstance(prompt, str) else prompt.messages[-1].content
        said = {one.number: self.answer(text, one.number) for one in self.chain_to(self.head)}
        live = said[self.head]
        first = next(number for number, answer in said.items() if answer == live)
        found = {"prompt": text, "after": live, "num_asked": 3}
        if first == 0:
            return found | {"version": None, "before": live, "edits": []}
        edits = [edit.to_json() for edit in self.chain[first].edits]
        return found | {"version": first, "before": said[self.chain[first].parent or 0], "edits": edits}

    # -- state --------------------------------------------------------------------------------------------------------

    async def all_metrics(self) -> str:
        return self.worker_metrics.exposition() + self.metrics.exposition() + GAPS

    async def service_status(self) -> dict[str, Any]:
        status = await super().service_status()
        replicas = [
            {"replica": name, "pid": 7, "version": self.head, "intact": True, "in_rotation": True}
            for name in ("k2x9q1", "p7w3zd")
        ]
        held = {"open": len(self.edits_at(self.head)), "lost": 0, "repairable": 0}
        status |= {"replicas": replicas, "timings": self.timings[-20:], "held_edits": held, "scrub": {}}
        links = {
            "mlflow": "http://127.0.0.1:5000/#/models/errata",
            "mlflow_version": "http://127.0.0.1:5000/#/models/errata/versions/1",
        }
        worker = {"pid": 8, "editor": "RLEdit", "form": "chat", "ledger": "/srv/errata/ledger"}
        return status | {"proposals": {"open": self.proposal_book.num_open, "limit": 1000}, "links": links, "worker": worker}

    async def stream(self, question: str) -> AsyncIterator[str]:
        """Yield the events of a streamed answer, a word each."""
        stamp = {"version_min": self.head, "version_max": self.head}
        for word in self.answer(question).split(" "):
            await asyncio.sleep(0.005)
            choices = [{"delta": {"content": f"{word} "}}]
            yield f"data: {json.dumps({'choices': choices, 'errata': stamp})}\n\n"
        yield "data: [DONE]\n\n"


def application(backend: ConsoleBackend, keys: Path | None = None) -> Access:
    """Mount the routes and the console over a backend, behind the access middleware."""
    app = FastAPI()
    routes.install(app, backend)
    console.install(app)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "errata", "max_model_len": CONTEXT}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        question = json.loads(await request.body())["messages"][-1]["content"]
        return StreamingResponse(backend.stream(question), media_type="text/event-stream")

    limits = ServiceLimits(max_streams=64)
    return Access(app, None if keys is None else Keys.load(keys), limits)


@dataclass(frozen=True)
class ConsoleService:
    """A running service with its backend."""

    url: str
    backend: ConsoleBackend

    @property
    def console(self) -> str:
        return f"{self.url}/console/"


@contextmanager
def serving_console(
    directory: Path, known: Mapping[str, str], keys: Path | None = None, port: int = 0
) -> Iterator[ConsoleService]:
    """Serve on a free port until the end of the block."""
    backend = ConsoleBackend(directory, known)
    config = uvicorn.Config(application(backend, keys), host="127.0.0.1", port=port, log_level="critical")
    with running(config) as url:
        yield ConsoleService(url, backend)
    backend.journal.close()
