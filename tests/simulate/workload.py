"""Clients of the simulated service, and the history of what they asked and were answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from errata.edit import EditRejected
from errata.generate import SwapFailed
from errata.ledger import LedgerConflict, UnknownVersion
from serving.api.version_stamp import RolledBack
from serving.worker.edit_worker import EditWorker
from serving.worker.journal import JournalFailed
from tests.simulate.fleet import SimReplicas
from tests.simulate.ledger import REFUSED
from tests.simulate.machine import Machine, in_worker

PROMPTS = ("who", "where", "when")
REFUSALS = (EditRejected, LedgerConflict, UnknownVersion, SwapFailed, RolledBack, TimeoutError)
RETRIED = (JournalFailed, OSError)  # Answered with 503: a client posts again under its key.
PAUSE_S = 0.5


@dataclass
class Operation:
    """One request of a client: `begin` and `end` order the events; `end` is None if no answer came."""

    kind: str
    at_s: float
    given: dict[str, Any]
    begin: int | None = None
    end: int | None = None
    answer: Any = None
    refusal: Exception | None = None

    @property
    def is_open(self) -> bool:
        return self.end is None and not (self.kind in ("rollback", "revert") and self.begin is not None)


def drawn_operations(draws: random.Random, count: int) -> list[Operation]:
    """Draw requests of which many correct the same few prompts."""
    kinds = draws.choices(("edit", "ask", "rollback", "revert"), (6, 4, 2, 1), k=count)
    kinds[0] = "edit"
    at_s, found = 0.0, list[Operation]()
    for number, kind in enumerate(kinds):
        at_s += draws.choice((0.0, 0.0, 0.01, 0.05, 0.3, 2.0))
        found.append(Operation(kind, round(at_s, 3), _DRAWS[kind](draws, number)))
    return found


def _edit(draws: random.Random, number: int) -> dict[str, Any]:
    targets = [f"a{number}", f"b{number}", "same", REFUSED]
    chosen = [(draws.choice(PROMPTS), draws.choices(targets, (6, 6, 3, 1))[0]) for _ in range(draws.choice((1, 2, 2, 3)))]
    edits = [{"prompt": prompt, "target": target} for prompt, target in chosen]
    return {"edits": edits, "wait": draws.random() < 0.5, "key": f"k{number}"}


def _ask(draws: random.Random, number: int) -> dict[str, Any]:
    return {"prompt": draws.choice(PROMPTS), "replica": draws.randrange(2), "at_least": draws.randrange(5)}


def _rollback(draws: random.Random, number: int) -> dict[str, Any]:
    return {"version": draws.randrange(4), "expected_head": draws.choice((None, None, 1, 2, 3))}


def _revert(draws: random.Random, number: int) -> dict[str, Any]:
    mode, expected_head = draws.choice(("auto", "replay")), draws.choice((None, None, 1, 2, 3))
    return {"mode": mode, "draw": draws.random(), "expected_head": expected_head}


_DRAWS: dict[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "edit": _edit,
    "ask": _ask,
    "rollback": _rollback,
    "revert": _revert,
}


@dataclass
class Clients:
    """The clients: they outlive the worker, repeat posts under their keys, and never repeat a rollback or a revert."""

    machine: Machine
    fleet: SimReplicas
    operations: list[Operation]
    ids: list[str] = field(default_factory=list)  # of acknowledged edits

    async def run(self, worker: EditWorker) -> None:
        """Carry out what is left, each operation at its time."""
        left = [self._carry_out(operation, worker) for operation in self.operations if operation.is_open]
        await asyncio.gather(*left)

    async def _carry_out(self, operation: Operation, worker: EditWorker) -> None:
        await asyncio.sleep(max(0.0, operation.at_s - self.machine.now))
        if operation.begin is None:
            operation.begin = self.machine.tick()
        while True:
            try:
                answer = await self._asked(operation, worker)
            except RETRIED as failed:
                if operation.kind == "edit":
                    await asyncio.sleep(PAUSE_S)
                    continue
                operation.refusal = failed
                return
            except REFUSALS as refusal:
                operation.refusal, answer = refusal, None
            operation.answer, operation.end = answer, self.machine.tick()
            if operation.kind == "edit" and answer is not None:
                self.ids += [edit["id"] for edit in answer]
            return

    def _asked(self, operation: Operation, worker: EditWorker) -> Awaitable[Any]:
        given = operation.given
        if operation.kind == "ask":
            return self.fleet.replicas[given["replica"]].ask(given["prompt"], given["at_least"])
        if operation.kind == "edit":
            return in_worker(worker.submit(given["edits"], given["wait"], given["key"]))
        if operation.kind == "rollback":
            return in_worker(worker.rollback(given["version"], None, given["expected_head"]))
        chosen = [self.ids[int(given["draw"] * len(self.ids))]] if self.ids else []
        return in_worker(worker.revert(chosen, [], given["mode"], None, given["expected_head"]))
