"""The task that makes copies of the journal for `errata ledger push`, while edits go on."""

from __future__ import annotations

import asyncio
import logging

from errata.ledger.journal_copy import make_wanted
from serving.logs import event
from serving.worker.journal import Journal, JournalFailed

logger = logging.getLogger("errata")

PERIOD_S = 0.5


async def make_copies(journal: Journal) -> None:
    """Make every copy that is wanted, for ever. A copy that fails stays wanted, and is tried again."""
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            if num_copies := await asyncio.to_thread(make_wanted, journal.path, journal.back_up):
                logger.info("%d copies of the journal were made", num_copies)
        except (OSError, JournalFailed) as fault:
            event(logger, "copy.failed", logging.ERROR, error=fault)
