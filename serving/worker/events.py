"""What happens to edits and versions, told to whoever listens: the source of the server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving.worker.journal import Journal, UnknownEdit

# A listener that is so far behind does not read; it is told so and let go, for it would fill the memory.
MAX_WAITING = 10_000
MAX_LISTENERS = 256  # each is told everything on the writer's own loop
END: None = None


class TooManyListeners(RuntimeError):
    """So many listen already that no more may."""


@dataclass(frozen=True)
class Event:
    """`kind` is `edit`, `version`, `head` or `lagged`; `data` its JSON."""

    kind: str
    data: dict[str, Any]


class Listener:
    """An iterator over the events since it was made, or over those of the edits `ids` alone; ends after `lagged`."""

    def __init__(self, ids: Collection[str] | None = None) -> None:
        self._ids = None if ids is None else frozenset(ids)
        self._waiting: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(self, event: Event) -> bool:
        """False once it is too far behind to be told anything more."""
        if not self._wants(event):
            return True
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put_nowait(event)
            return True
        self._waiting.put_nowait(Event("lagged", {"message": f"{MAX_WAITING} events were not read; connect again"}))
        self._waiting.put_nowait(END)
        return False

    def _wants(self, event: Event) -> bool:
        return self._ids is None or (event.kind == "edit" and event.data["id"] in self._ids)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._waiting.get()) is not END:
            yield event


@dataclass
class EventBus:
    """Everything is told to every listener that wants it, in order, and never waits for one."""

    _listeners: set[Listener] = field(default_factory=set)

    @property
    def is_heard(self) -> bool:
        return bool(self._listeners)

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        event = Event(kind, data)
        self._listeners = {listener for listener in self._listeners if listener.put(event)}

    @contextmanager
    def listener(self, ids: Collection[str] | None = None) -> Iterator[Listener]:
        """Hears from the beginning of the block to its end: everything, or of the edits `ids` alone.

        Raises `TooManyListeners`.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise TooManyListeners(f"{MAX_LISTENERS} streams of events are open, and no more may be; ask again later")
        listener = Listener(ids)
        self._listeners |= {listener}
        try:
            yield listener
        finally:
            self._listeners -= {listener}


@dataclass(eq=False)
class Waiter:
    """Waits until none of its edits is open."""

    open_ids: set[str]
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def settle(self, ids: set[str]) -> None:
        self.open_ids -= ids
        if not self.open_ids:
            self.done.set()


class Waiters:
    """`feed` is what listeners hear; an edit that the journal does not have, which another one posted, is not told of."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.feed = journal, EventBus()
        self._waiters: set[Waiter] = set()

    def tell(self, ids: Iterable[str]) -> None:
        if not (self._waiters or self.feed.is_heard):
            return
        settled = set[str]()
        for id in ids:
            try:
                entry = self.journal.get(id)
            except UnknownEdit:
                continue
            self.feed.tell("edit", entry.to_json())
            if entry.is_settled:
                settled.add(id)
        for waiter in tuple(self._waiters):
            waiter.settle(settled)

    @contextmanager
    def waiter(self, ids: Iterable[str]) -> Iterator[Waiter]:
        """One for those of these edits that are open now; it hears of them until the end of the block."""
        waiter = Waiter({id for id in ids if not self.journal.get(id).is_settled})
        waiter.settle(set())
        self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            self._waiters.discard(waiter)
