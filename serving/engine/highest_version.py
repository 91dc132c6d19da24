"""The highest version that there can be soon, as the edit worker knows it.

A request may wait for a version that is being made. One for a version that no edit is queued for would hold its slot in vain,
so it is refused immediately. The ledger's newest version on this machine is not enough to decide that: another machine may
see a new version later, and edits that are queued are known to the worker alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

from serving.worker.refusals import UNANSWERED, answer_of

TIMEOUT_S = 1.0


class HighestVersion:
    """Asks the worker over its handle; callers at the same time share one question."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self._asking: asyncio.Task[int | None] | None = None

    async def __call__(self) -> int | None:
        """Return the newest version plus the open edits, each of which may become a version; None without an answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._asked())
        return await asyncio.shield(self._asking)

    async def _asked(self) -> int | None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return int(await answer_of(self.worker.highest_version.remote()))
        except UNANSWERED:
            return None
