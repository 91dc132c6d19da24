"""The lineage of the version that a replica serves, which decides whether it answers a request for at least another version."""

from __future__ import annotations

import asyncio

from errata.history.ancestry import Ancestry, holds_again, was_lost
from errata.ledger import Ledger


class ServedLineage:
    """The ancestors of the served version; `prepare` finds those of the next one before it is served."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.ancestry = Ancestry(0, (range(1),))
        self._held_again: dict[int, bool] = {}  # By lost version, whether the served version holds its edits.

    async def prepare(self, version: int) -> Ancestry:
        return await asyncio.to_thread(Ancestry.of, self.ledger, version, self.ancestry)

    def serves(self, ancestry: Ancestry) -> None:
        """Note that the version of `ancestry` is served now."""
        self.ancestry, self._held_again = ancestry, {}

    def has(self, wanted: int) -> bool:
        """Say if the served version follows `wanted`, or is known to hold its edits."""
        return wanted in self.ancestry or self._held_again.get(wanted, False)

    def is_decided(self, wanted: int) -> bool:
        """Say if a request for `wanted` need not wait: it is served, or was made and is not in the head, which is served."""
        if self.has(wanted):
            return True
        was_made = wanted < self.ledger.folders.next_number  # Read first: the head is at least as new.
        return was_made and self.ledger.head == self.ancestry.version

    async def has_again(self, wanted: int) -> bool:
        """Say if the served version holds the edits of a version that was lost. Looked up once for each served version."""
        served = self.ancestry
        if wanted not in self._held_again and was_lost(self.ledger, wanted):
            found = await asyncio.to_thread(holds_again, self.ledger, served.version, wanted)
            if served is not self.ancestry:
                return False
            self._held_again[wanted] = found
        return self._held_again.get(wanted, False)
