"""The task that scrubs the ledger from time to time: damage is found while a backup still has what it took."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from errata.ledger.scrub import scrub
from serving.logs import event

logger = logging.getLogger("errata")

FIRST_S = 3600.0  # After the start, since a service that is restarted every day would otherwise never scrub.
PAUSE_S = 0.05  # Between two versions, so that edits and engines have the disk.


class Scrubber:
    """Scrubs the ledger in `directory` every `hours`; 0 is never. `state` has the end of the last scrub and what it found."""

    def __init__(self, directory: str, hours: float) -> None:
        self.directory, self.period_s = directory, 3600 * hours
        self.state: dict[str, Any] = {}

    async def work(self) -> None:
        """Scrub for ever, the first time an hour after the start at the latest."""
        await asyncio.sleep(min(FIRST_S, self.period_s))
        while self.period_s:
            try:
                await self.scrub()
            except OSError as fault:
                self.state = {**self.state, "error": f"{type(fault).__name__}: {fault}"}
                event(logger, "version.unread", logging.ERROR, error=fault)
            await asyncio.sleep(self.period_s)
        await asyncio.Event().wait()  # A task of the worker that ends is a fault.

    async def scrub(self) -> None:
        """Scrub once, in a thread, one version at a time."""
        begin, num_files, damaged = time.time(), 0, list[dict[str, Any]]()
        found = scrub(self.directory)
        while (one := await asyncio.to_thread(next, found, None)) is not None:
            name, faults = one
            num_files += 1
            if faults:
                damaged.append({"name": name, "faults": faults})
                event(logger, "version.damaged", logging.ERROR, error=[f"{name}: {fault}" for fault in faults])
            await asyncio.sleep(PAUSE_S)
        self.state = {"began": begin, "seconds": round(time.time() - begin, 3), "checked": num_files, "damaged": damaged}
