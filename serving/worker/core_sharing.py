"""The cores that an editor on the CPU and the engines beside it use in turn.

While edits are made, the editor has cores of its own, because threads of an engine that share a core wait for each other
actively and almost stop. At all other times these cores would be idle, so the engines compute with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serving.worker.replicas import Replicas


class CoreSharing:
    """Notifies the replicas when edits begin and end; nothing waits for it, and a replica that misses it is only slower."""

    def __init__(self, replicas: Replicas, is_on: bool = False) -> None:
        self.replicas, self.is_on = replicas, is_on
        self._num_editing = 0
        self._sent: bool | None = None
        self._sending: asyncio.Task[None] | None = None

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Let the engines leave the editor its cores while the block runs."""
        self._num_editing += 1
        self.notify()
        try:
            yield
        finally:
            self._num_editing -= 1
            self.notify()

    def notify(self) -> None:
        """Send the replicas whether edits are made, also after a start, since the worker before may have died at an edit."""
        if self.is_on and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._sent != (now := self._num_editing > 0):
            if not await self.replicas.ask("share_cores", now):
                return  # None is up: they begin with all cores, and are notified at the next change.
            self._sent = now
