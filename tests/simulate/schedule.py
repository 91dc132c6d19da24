"""One schedule: clients, a worker that dies at given points and is started again, and the checks at the end."""

from __future__ import annotations

import asyncio
import random
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from serving.worker.edit_worker import EditWorker, WorkerOptions
from serving.worker.journal import Journal, JournalFailed
from serving.worker.replicas import Replicas
from tests.simulate.checks import Outcome, violations
from tests.simulate.fleet import SimReplica, SimReplicas
from tests.simulate.ledger import Disk, DyingJournal, MemoryLedger, TableModel
from tests.simulate.machine import Crash, Machine, VirtualLoop, in_worker, simulated
from tests.simulate.workload import Clients, drawn_operations

NUM_OPERATIONS, NUM_REPLICAS, MAX_BATCH = 10, 2, 4
MAX_STARTS = 30
QUIET_S, MAX_S = 30.0, 4_000.0  # A version that replicas refuse late is retracted after several tries of 10 s.


@dataclass(frozen=True)
class Schedule:
    """A seed of requests and delays, the points where the worker dies, and the transactions that fail.

    `whole_machine`: the replicas end with the worker, and the machine is started again.
    """

    seed: int
    crashes: tuple[int, ...] = ()
    failing: tuple[int, ...] = ()
    whole_machine: bool = False


@dataclass(frozen=True)
class PlayedSchedule:
    """The result of a schedule: violations, and how many points and transactions it has."""

    schedule: Schedule
    violations: tuple[str, ...]
    num_points: int
    num_transactions: int
    num_starts: int


class Service:
    """The service of one schedule; `directory` is empty."""

    def __init__(self, schedule: Schedule, directory: Path) -> None:
        self.schedule, self.directory, self.disk = schedule, directory, Disk()
        draws = random.Random(schedule.seed)
        self.machine = Machine(schedule.seed, schedule.crashes, schedule.failing)
        refused = frozenset(number for number in range(1, 6) if draws.random() < 0.05)
        outside = Machine(0)  # Replicas do not die with the worker.
        replicas = [SimReplica(f"r{i}", MemoryLedger(self.disk, outside), refused) for i in range(NUM_REPLICAS)]
        self.fleet = SimReplicas(self.machine, replicas, late=draws.choice((0.0, 0.05, 0.2)))
        self.clients = Clients(self.machine, self.fleet, drawn_operations(draws, NUM_OPERATIONS))
        self.num_starts = 0

    def play(self) -> PlayedSchedule:
        found: list[str] = []
        with simulated(self.machine, lambda: self.fleet):
            while not self._life():
                if self.num_starts == MAX_STARTS:
                    found = [f"the worker was started {MAX_STARTS} times"]
                    break
                if self.schedule.whole_machine:
                    self.fleet.reboot()
            found += ["the worker ended by itself"] * self.machine.num_ended + violations(self._outcome())
        machine = self.machine
        return PlayedSchedule(self.schedule, tuple(found), machine.num_points, machine.num_transactions, self.num_starts)

    def _life(self) -> bool:
        """Run one process of the worker; True if it lived until all was done."""
        loop, self.num_starts = VirtualLoop(self.machine), self.num_starts + 1
        self.machine.is_dead = False
        self.journal: DyingJournal | None = None
        try:
            loop.run_until_complete(self._until_quiet())
            return True
        except Crash:
            return False
        except JournalFailed:  # At the start: Serve starts the worker again.
            return False
        finally:
            self.machine.is_dead = True
            loop.abandon()
            if self.journal is not None:
                self.journal.close()

    async def _until_quiet(self) -> None:
        self.fleet.context = copy_context()
        self.fleet.resume()
        worker = await in_worker(self._started())
        await self.clients.run(worker)
        async with asyncio.timeout(MAX_S):
            while self._is_busy(worker):
                await asyncio.sleep(QUIET_S)

    def _is_busy(self, worker: EditWorker) -> bool:
        head, replicas = worker.live_model.ledger.head, self.fleet.replicas
        is_behind = any(replica.version != head for replica in replicas if head not in replica.refused)
        return (
            bool(worker.journal.pending()) or is_behind or not worker.edit_loop.reconciler.is_settled or bool(self.fleet.sent)
        )

    async def _started(self) -> EditWorker:
        node = str(self.num_starts) if self.schedule.whole_machine else ""
        self.journal = DyingJournal(self.directory / "journal", self.machine, node)
        options = WorkerOptions(live_model=None, journal="", max_batch=MAX_BATCH)  # type: ignore[arg-type]
        model = TableModel(MemoryLedger(self.disk, self.machine))
        mirror = SimpleNamespace(wake=lambda: None, start=lambda: None)
        worker = EditWorker(model, self.journal, mirror, options, Replicas())  # type: ignore[arg-type]
        worker.start()
        return worker

    def _outcome(self) -> Outcome:
        journal = Journal(self.directory / "journal", wait_s=0)
        entries = {entry.id: entry for entry in journal.newest(1000)}
        journal.close()
        ledger = MemoryLedger(self.disk, Machine(0))
        operations, acknowledged = self.clients.operations, self.clients.ids
        return Outcome(operations, acknowledged, entries, ledger, self.disk.heads, self.fleet.replicas)
