"""A machine without chance: a virtual clock, seeded draws, and numbered points at which the edit worker may die."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import SimpleNamespace
from typing import Any

import pytest

from serving.metrics import WorkerMetrics
from serving.worker import edit_loop, edit_worker, journal, replicas

IN_WORKER: ContextVar[bool] = ContextVar("in_worker", default=False)
METRICS = WorkerMetrics()  # To make them takes as long as a schedule.
MAX_THREAD_S = 0.02  # of the work that the edit worker gives to a thread


class Crash(SystemExit):
    """The death of the worker's process: the event loop stops in the middle of what it does."""


class Deadlock(RuntimeError):
    """A schedule in which nothing is left to run although operations are open."""


class Machine:
    """The source of everything that is random on a real machine. `crashes` are the numbers of the points where the worker dies.

    A point is each resumption of a coroutine of the worker and each durable write, before it and after it. `failing` are the
    numbers of the journal's transactions that fail.
    """

    def __init__(self, seed: int, crashes: Collection[int] = (), failing: Collection[int] = ()) -> None:
        self.draws, self.crashes, self.failing, self.now = random.Random(seed), crashes, failing, 0.0
        self.num_points, self.num_transactions, self.num_events, self.num_ended, self.is_dead = 0, 0, 0, 0, False

    def point(self) -> None:
        """Let the worker die here, if it is its turn. A dead process writes nothing any more."""
        if self.is_dead:
            raise Crash
        self.num_points += 1
        if self.num_points in self.crashes:
            self.die()

    def die(self) -> None:
        self.is_dead = True
        raise Crash

    def end(self, _code: int) -> None:
        """Stand in for `os._exit`, by which the worker ends after an exception that it does not expect."""
        self.num_ended += 1
        self.die()

    def tick(self) -> int:
        """Return the number of an event, so that of two events the earlier is known."""
        self.num_events += 1
        return self.num_events

    def new_id(self) -> uuid.UUID:
        return uuid.UUID(int=self.draws.getrandbits(128))

    async def in_thread(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Stand in for `asyncio.to_thread`: other coroutines run before and after the work."""
        await asyncio.sleep(self.draws.random() * MAX_THREAD_S)
        result = work(*arguments, **named)
        await asyncio.sleep(0)
        return result


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that never waits: the clock jumps to the time of the next timer."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine, self._selector, self.is_abandoned = machine, self, False

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock("nothing is left to run")
        self.machine.now += max(0.0, timeout)
        return []

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...

    def time(self) -> float:
        return self.machine.now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        if self.is_abandoned:
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(self._run, callback, args, context=context)

    def _run(self, callback: Any, arguments: tuple[Any, ...]) -> None:
        if IN_WORKER.get():
            self.machine.point()
        callback(*arguments)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log nothing about tasks and futures of a dead process, which no task awaits any more."""
        if not self.is_abandoned:
            super().call_exception_handler(context)

    def abandon(self) -> None:
        """Leave all tasks where they are, as the end of a process does; what they still clean up reaches nothing."""
        self.is_abandoned = True
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with contextlib.suppress(RuntimeError, Crash):
                task.get_coro().close()  # type: ignore[union-attr]
        self._ready.clear()
        self._scheduled.clear()
        self.close()


def in_worker(work: Any) -> asyncio.Task[Any]:
    """Run a coroutine as a part of the worker's process."""
    context = copy_context()
    context.run(IN_WORKER.set, True)
    return asyncio.get_running_loop().create_task(work, context=context)


@contextmanager
def simulated(machine: Machine, generators: Callable[[], Any]) -> Iterator[None]:
    """Replace threads, clocks, ids, the end of the process and Ray's handle of the replicas."""
    clock = SimpleNamespace(time=lambda: machine.now, monotonic=lambda: machine.now)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncio, "to_thread", machine.in_thread)
        patched.setattr(replicas, "time", clock)
        patched.setattr(replicas, "_generators", generators)
        patched.setattr(journal, "time", clock)
        patched.setattr(journal, "uuid", SimpleNamespace(uuid4=machine.new_id))
        patched.setattr(edit_worker, "check_edits", lambda *_: None)
        patched.setattr(edit_loop, "WorkerMetrics", lambda: METRICS)
        patched.setattr(edit_worker.os, "_exit", machine.end)
        yield
