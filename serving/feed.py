"""What happens to edits and versions, told to whoever listens: the source of the server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# A listener that is so far behind does not read; it is told so and let go, for it would fill the memory.
MAX_WAITING = 10_000
END: None = None


@dataclass(frozen=True)
class Event:
    """`kind` is `edit`, `version`, `head` or `lagged`; `data` its JSON."""

    kind: str
    data: dict[str, Any]


class Listener:
    """An iterator over the events since it was made; ends after `lagged`."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(self, event: Event) -> bool:
        """False once it is too far behind to be told anything more."""
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put_nowait(event)
            return True
        self._waiting.put_nowait(Event("lagged", {"message": f"{MAX_WAITING} events were not read; connect again"}))
        self._waiting.put_nowait(END)
        return False

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._waiting.get()) is not END:
            yield event


@dataclass
class Feed:
    """Everything is told to every listener, in order, and never waits for one."""

    _listeners: set[Listener] = field(default_factory=set)

    @property
    def is_heard(self) -> bool:
        return bool(self._listeners)

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        event = Event(kind, data)
        self._listeners = {listener for listener in self._listeners if listener.put(event)}

    @contextmanager
    def listener(self) -> Iterator[Listener]:
        """Hears from the beginning of the block to its end."""
        listener = Listener()
        self._listeners |= {listener}
        try:
            yield listener
        finally:
            self._listeners -= {listener}
