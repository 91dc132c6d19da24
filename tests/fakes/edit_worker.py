"""The edit worker over an in-memory model and replicas that serve what they are asked: no Ray, no engine, no weights."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from errata.candidate import CandidateVersion
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditRejected
from errata.editors.state import EditorState
from errata.ledger import HeadMoved, LedgerConflict, Version
from errata.local.service_limits import NAMES, ServiceLimits
from serving.worker.edit_worker import EditWorker, WorkerOptions
from serving.worker.journal import Journal
from serving.worker.replicas import Replicas

DONT_KNOW = "something else"
TOKENIZER = SimpleNamespace(all_special_ids=[], chat_template=None)  # Of a model without a chat template.


class InMemoryLedger(SimpleNamespace):
    """The parts of a ledger that the worker reads; `contents` has the edits by version."""

    @property
    def next_number(self):
        return max([self.head, *self.contents]) + 1


class InMemoryLiveModel:
    """A live model whose versions are lists of edits. `refuse` maps a batch to its `EditRejected`, or to None.

    `said` has its answers by prompt; every other prompt is answered by `DONT_KNOW`, also after an edit.
    """

    def __init__(self, refuse, tokenizer=TOKENIZER) -> None:
        self.refuse_batch, self.version, self.made, self.noted = refuse, 0, [], []
        self.said, self.asked, self.lost, self.held, self.num_loads = {}, [], [], [], 1
        self.faults = []  # Raised by the next appends.
        self.retracted, self.cards, self.contents, self.bank = set(), {}, {}, None
        self.ledger = InMemoryLedger(
            contents=self.contents,
            refuse=lambda parent, edit, why, says=None: self.noted.append((parent, edit.id)),
            head=0,
            head_at=lambda: (0, self.ledger.head),
            version=lambda number: version(number, self.cards.get(number), self.contents.get(number, ())),
            find_edit=self.holder,
            head_before=lambda number: number - 1 if number == len(self.made) else None,
            chain=self.chain,
            live=lambda: frozenset(range(self.ledger.head + 1)),
            quarantined=list,
            retracted=lambda: frozenset(self.retracted),
            versions=lambda: [version(n, self.cards[n], self.contents[n]) for n in sorted(self.contents)],
        )
        self.max_tokens, self.model = 100, SimpleNamespace(tokenizer=tokenizer, end_ids=frozenset())

    knows_answers, max_batch, carried_counts = False, 16, {"memory": 0, "weights": 0}

    def holder(self, id):
        made = {number: edits for number, edits in enumerate(self.made, 1) if number not in self.retracted}
        return next((number for number, edits in made.items() if id in [edit.id for edit in edits]), None)

    def expect(self, edits): ...

    def answers(self, edits):
        self.asked.append([edit.prompt for edit in edits])
        return [[self.said.get(prompt, DONT_KNOW) for prompt in edit.prompts] for edit in edits]

    def make(self, edits, before, in_chat):
        refusal = self.refuse_batch(edits)
        if refusal is not None:
            raise refusal
        answers = [[one, edit.target] for one, edit in zip(before, edits, strict=True)]
        return self.candidate(edits, {"answers": answers})

    def revert(self, edits, versions, mode):
        if not edits:
            raise EditRejected("nothing is chosen", code=Code.EDITOR_FAILED)
        return self.candidate((), {"reverted": {"edits": edits, "versions": [1], "mode": "subtract"}})

    def hold(self, edits, said):
        self.held += [edit.prompt for edit in edits]

    def release(self, edit):
        self.held = [prompt for prompt in self.held if prompt != edit.prompt]

    def still_answers(self, edit):
        return False

    def look(self, count):
        return False

    def to_repair(self, count):
        return self.lost[:count]

    def repair(self, lost):
        self.lost = []
        if (refusal := self.refuse_batch(lost)) is not None:
            raise refusal
        return self.candidate((), {"repaired": [edit.id for edit in lost]})

    def candidate(self, edits, scorecard):
        return CandidateVersion(self.version, self.version, edits, WeightDelta({}), EditorState(), scorecard)

    @property
    def held_counts(self):
        return {"open": 0, "lost": len(self.lost), "repairable": len(self.lost)}

    def answered(self, id):
        return {"answered": id not in [edit.id for edit in self.lost]}

    def append(self, made):
        if self.faults:
            raise self.faults.pop()
        if any(edit.prompt == "conflict" for edit in made.edits) and self.version < 5:
            self.version = self.ledger.head = 5
            raise LedgerConflict(0, 5)
        self.version = self.ledger.head = max(self.version, len(self.made)) + 1  # No number is used twice.
        self.made.append(made.edits)
        self.cards[self.version], self.contents[self.version] = made.scorecard, tuple(made.edits)
        return version(self.version, made.scorecard, tuple(made.edits))

    def move_to(self, number, by="", expected_head=None):
        if expected_head not in (None, self.ledger.head):
            raise HeadMoved(expected_head, self.ledger.head)
        self.version = self.ledger.head = number

    def retract(self, number, to):
        self.retracted.add(number)
        self.move_to(to)

    def chain(self, number):
        return list(range(1, number + 1))


def version(number, scorecard=None, edits=()):
    return Version(number, number - 1, "e", "p", "f", "2026-01-01", edits, scorecard or {}, 0, {}, {}, None)


class InMemoryReplicas(Replicas):
    """Replicas that serve every version; `faults` are raised by the next swaps, `answer` is that to the next requests."""

    def __init__(self) -> None:
        super().__init__()
        self.faults, self.served, self.asked = [], [], []
        self.answer: dict[str, Any] | None = None

    async def swap(self, version, epoch, attempts=5) -> None:
        fault = self.faults.pop(0) if self.faults else None
        self.is_behind = fault is not None
        if fault is not None:
            raise fault
        self.served.append(version.number)

    async def answers(self, asked):
        self.asked.append(asked)
        return self.answer


def make_worker(tmp_path, refuse=lambda edits: None, tokenizer=TOKENIZER, **options) -> EditWorker:
    journal, mirror = Journal(tmp_path / "journal"), SimpleNamespace(wake=lambda: None)
    limits = ServiceLimits(**{name: options.pop(name) for name in list(options) if name in NAMES})
    options = WorkerOptions(live_model=None, journal="", batch_window_s=0.0, limits=limits, **options)
    return EditWorker(InMemoryLiveModel(refuse, tokenizer), journal, mirror, options, InMemoryReplicas())


def post(worker: EditWorker, *prompts: str, target: str = "x") -> list[str]:
    return worker.journal.submit([{"prompt": prompt, "target": target} for prompt in prompts])


def apply(worker: EditWorker, limit: int = 5000) -> None:
    asyncio.run(worker.edit_loop._apply(worker.journal.take(limit)))


def logged(caplog: pytest.LogCaptureFixture, name: str) -> list[Any]:
    """Return the log lines about an event."""
    return [line for line in caplog.records if getattr(line, "event", None) == name]


def states(worker: EditWorker, ids: list[str]) -> list[tuple[str, int | None]]:
    return [(entry.state, entry.version) for entry in map(worker.journal.get, ids)]


def replicas_of(worker: EditWorker) -> InMemoryReplicas:
    """Return the replicas that the worker publishes to."""
    replicas = worker.edit_loop.publisher.replicas
    assert isinstance(replicas, InMemoryReplicas)
    return replicas
