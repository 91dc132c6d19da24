"""The ledger's snapshots are written in lulls between edits, so that no post waits for one."""

from __future__ import annotations

import asyncio
import logging

from errata.ledger import Ledger, LedgerDamaged
from serving.worker.lull import Lull

logger = logging.getLogger("errata")

PERIOD_S = 2.0


async def write_snapshots(ledger: Ledger, lull: Lull, writing: asyncio.Lock) -> None:
    """Write the snapshots that are due, for ever. One that cannot be written is due again; `writing` is the writers' lock."""
    seen = -1
    while True:
        await asyncio.sleep(PERIOD_S)
        if (newest := ledger.newest) == seen:
            continue
        await lull.wait()
        try:
            async with writing:
                await asyncio.to_thread(ledger.snapshot)
            seen = newest
        except (OSError, LedgerDamaged) as fault:
            logger.warning("a snapshot of the ledger cannot be written: %s", fault)
