"""Who waits for edits, and who listens to them: told once, when an edit comes to another state."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serving.feed import Feed
from serving.journal import Journal, UnknownEdit


class Busy(RuntimeError):
    """What is asked for is done once at a time, and under way already."""


@dataclass(eq=False)
class Waiter:
    """Waits until none of its edits is open."""

    open_ids: set[str]
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def settle(self, ids: set[str]) -> None:
        self.open_ids -= ids
        if not self.open_ids:
            self.done.set()


class Audience:
    """`feed` is what listeners hear; an edit that the journal does not have, which another one posted, is not told of."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.feed = journal, Feed()
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
