"""Events of edits and versions: a bus for the server-sent event streams, and waiters for posts that wait for their edits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from errata.local.service_limits import ServiceLimits
from serving.worker.journal import Journal, UnknownEdit
from serving.worker.journal_entry import event_of

END: None = None


class TooManyListeners(RuntimeError):
    """A request for an event stream while as many as `max_listeners` are open."""


@dataclass(frozen=True)
class ServiceEvent:
    """One event: `kind` is `edit`, `proposal`, `version`, `head` or `lagged`; `data` is its JSON."""

    kind: str
    data: dict[str, Any]


class Listener:
    """An iterator over the events since its creation, or over those of the edits `ids` alone; it ends after `lagged`.

    A listener with `max_waiting` events does not read. It gets a last event and is dropped, because its queue would grow
    without bound.
    """

    def __init__(self, ids: Collection[str] | None, max_waiting: int) -> None:
        self._ids, self.max_waiting = None if ids is None else frozenset(ids), max_waiting
        self._waiting: asyncio.Queue[ServiceEvent | None] = asyncio.Queue()

    def put(self, event: ServiceEvent) -> bool:
        """Queue an event; False if the listener was too far behind and has been ended."""
        if not self._wants(event):
            return True
        if self._waiting.qsize() < self.max_waiting:
            self._waiting.put_nowait(event)
            return True
        message = f"{self.max_waiting} events were not read (max_waiting_events={self.max_waiting}); connect again"
        self._waiting.put_nowait(ServiceEvent("lagged", {"message": message}))
        self._waiting.put_nowait(END)
        return False

    def _wants(self, event: ServiceEvent) -> bool:
        return self._ids is None or (event.kind == "edit" and event.data["id"] in self._ids)

    async def __aiter__(self) -> AsyncIterator[ServiceEvent]:
        while (event := await self._waiting.get()) is not END:
            yield event


@dataclass
class EventBus:
    """Publishes every event to every listener that wants it, in order, and never waits for a listener.

    Events are put into every listener's queue on the writer's own loop, so the number of listeners is limited.
    """

    limits: ServiceLimits = field(default_factory=ServiceLimits)
    _listeners: set[Listener] = field(default_factory=set)

    @property
    def has_listeners(self) -> bool:
        return bool(self._listeners)

    def publish(self, kind: str, data: dict[str, Any]) -> None:
        event = ServiceEvent(kind, data)
        self._listeners = {listener for listener in self._listeners if listener.put(event)}

    @contextmanager
    def listener(self, ids: Collection[str] | None = None) -> Iterator[Listener]:
        """Listen until the end of the block, to everything or to the edits `ids` alone. Raises `TooManyListeners`."""
        if len(self._listeners) >= (limit := self.limits.max_listeners):
            message = f"{limit} event streams are open, which is the limit (max_listeners={limit})"
            raise TooManyListeners(f"{message}; close one, or try again later")
        listener = Listener(ids, self.limits.max_waiting_events)
        self._listeners |= {listener}
        try:
            yield listener
        finally:
            self._listeners -= {listener}


@dataclass(eq=False)
class Waiter:
    """The open edits of one post; `done` is set when none is open."""

    open_ids: set[str]
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def settle(self, ids: set[str]) -> None:
        self.open_ids -= ids
        if not self.open_ids:
            self.done.set()


class Waiters:
    """Publishes the states of edits to waiting posts and, through `event_bus`, to event streams."""

    def __init__(self, journal: Journal, limits: ServiceLimits | None = None) -> None:
        self.journal, self.event_bus = journal, EventBus(limits or ServiceLimits())
        self._waiters: set[Waiter] = set()

    def publish(self, ids: Iterable[str]) -> None:
        """Publish the present state of these edits. Edits of another journal, which the ledger may hold, are left out."""
        if not (self._waiters or self.event_bus.has_listeners):
            return
        settled = set[str]()
        for id in ids:
            try:
                entry = self.journal.get(id)
            except UnknownEdit:
                continue
            self.event_bus.publish("edit", event_of(entry))
            if entry.is_settled:
                settled.add(id)
        for waiter in tuple(self._waiters):
            waiter.settle(settled)

    @contextmanager
    def waiter(self, ids: Iterable[str]) -> Iterator[Waiter]:
        """Follow those of the edits that are open now until the end of the block."""
        waiter = Waiter({id for id in ids if not self.journal.get(id).is_settled})
        waiter.settle(set())
        self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            self._waiters.discard(waiter)
