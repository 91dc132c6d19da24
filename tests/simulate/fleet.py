"""Replicas that serve tables of answers: the fence and the lineage are the real ones, broadcasts come late or never."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from serving.api.version_stamp import RolledBack
from serving.engine.fence import HeadFence, StaleHead
from serving.engine.served_lineage import ServedLineage
from tests.fakes.edit_worker import DONT_KNOW
from tests.simulate.ledger import MemoryLedger, answers_of
from tests.simulate.machine import Machine

SWAP_S, WATCH_S, REPAIR_AFTER_S, AT_LEAST_S = 0.01, 0.5, 0.5, 10.0
LATE_S = 11.0  # After the worker has given the broadcast up.


class SimReplica:
    """A replica. `seen` are the versions that it served, in order; `refused` are those whose files it does not take."""

    def __init__(self, name: str, ledger: MemoryLedger, refused: frozenset[int]) -> None:
        self.name, self.ledger, self.refused, self.seen = name, ledger, refused, list[int]()
        self.boot()

    def boot(self) -> None:
        """Start at the head, as a replica does before it takes requests."""
        self.fence, self.lineage = HeadFence(self.ledger), ServedLineage(self.ledger)
        self._serve(self.fence.target())

    def resume(self) -> None:
        """Continue on another event loop."""
        self.swapping, self.changed = asyncio.Lock(), asyncio.Condition()

    def _serve(self, version: int) -> None:
        self.version, self.table = version, answers_of(self.ledger, version)
        self.lineage.serves(type(self.lineage.ancestry).of(self.ledger, version, self.lineage.ancestry))
        self.seen.append(version)

    async def swap(self, epoch: int = 0) -> dict[str, Any]:
        answer: dict[str, Any] = {"replica": self.name}
        async with self.swapping:
            try:
                target = self.fence.target(epoch)
                if target in self.refused:
                    answer |= {"error": "its files are not taken", "refused": True}
                elif target != self.version:
                    await asyncio.sleep(SWAP_S)
                    self._serve(target)
            except StaleHead as stale:
                answer |= {"error": str(stale)}
        async with self.changed:
            self.changed.notify_all()
        return answer | {"version": self.version, "fingerprint": self.ledger.version(self.version).fingerprint}

    async def watch(self) -> None:
        """Follow the head without broadcasts."""
        behind_s = 0.0
        while True:
            await asyncio.sleep(WATCH_S)
            behind_s = behind_s + WATCH_S if self.ledger.head not in (self.version, *self.refused) else 0.0
            if behind_s > REPAIR_AFTER_S:
                await self.swap()

    async def ask(self, prompt: str, at_least: int) -> tuple[str, int]:
        """Answer a prompt, with the version. Raises `RolledBack`, and `TimeoutError` for a version that does not come."""
        async with asyncio.timeout(AT_LEAST_S):
            while True:
                async with self.changed:
                    await self.changed.wait_for(lambda: self.lineage.is_decided(at_least))
                if self.lineage.has(at_least):
                    return self.table.get(prompt, DONT_KNOW), self.version
                version = self.version
                if not await self.lineage.has_again(at_least) and self.version == version:
                    raise RolledBack(at_least, version)


@dataclass(eq=False)
class _Message:
    replica: SimReplica
    arguments: tuple[Any, ...]
    delay_s: float


@dataclass
class SimReplicas:
    """Ray's handle of the replicas. A message that was sent is delivered even if the worker dies."""

    machine: Machine
    replicas: list[SimReplica]
    late: float = 0.1  # The share of messages that come late.
    sent: list[_Message] = field(default_factory=list)
    context: Any = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def resume(self) -> None:
        """Continue on another event loop, with the messages that are on their way."""
        self._tasks = set()
        for replica in self.replicas:
            replica.resume()
            self._begin(replica.watch())
        for message in self.sent:
            self._begin(self._delivered(message))

    def reboot(self) -> None:
        """Start all replicas again, as after the end of the machine; messages are lost."""
        self.sent = []
        for replica in self.replicas:
            replica.boot()

    def _begin(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, context=self.context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def broadcast(self, method: str, *arguments: Any) -> Broadcast:
        assert method == "swap"
        sent = [_Message(replica, arguments, self._delay_s()) for replica in self.replicas]
        self.sent += sent
        return Broadcast([self._begin(self._delivered(message)) for message in sent])

    def _delay_s(self) -> float:
        draw = self.machine.draws.random()
        return LATE_S * (1 + draw) if draw < self.late else draw / 10

    async def _delivered(self, message: _Message) -> dict[str, Any]:
        await asyncio.sleep(message.delay_s)
        answer = await message.replica.swap(*message.arguments)
        if message in self.sent:
            self.sent.remove(message)
        return answer

    @property
    def answer(self) -> SimReplicas:
        return self

    async def remote(self, asked: list[Any]) -> dict[str, Any]:
        return {"version": None, "texts": []}


@dataclass
class Broadcast:
    """The answers of one broadcast, as Ray Serve gives them."""

    answers: list[asyncio.Task[Any]]

    async def results_async(self, timeout_s: float, return_exceptions: bool = False) -> list[Any]:
        _, waiting = await asyncio.wait(self.answers, timeout=timeout_s)
        if waiting:
            raise TimeoutError
        return [task.result() for task in self.answers]
