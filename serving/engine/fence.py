"""The fence of a replica: swaps follow the ledger's head, and never an older head than the one that is known already."""

from __future__ import annotations

from dataclasses import dataclass

from errata.ledger import Ledger


class StaleHead(OSError):
    """A head that is read and is older than a known one, as a cache of a network file system may give it."""


@dataclass
class HeadFence:
    """Chooses the version of each swap. `epoch` is that of the newest known head, and only grows.

    A swap goes to the head of its turn: one that comes late, after the edit worker has given it up, must not take the replica
    back to the version that was the head when it was sent.
    """

    ledger: Ledger
    epoch: int = 0

    def target(self, asked: int = 0) -> int:
        """Return the version to swap to; `asked` is the epoch of the head for which the swap was sent. Raises `StaleHead`."""
        epoch, head = self.ledger.head_at()
        self.epoch = max(self.epoch, asked)
        if epoch < self.epoch:
            raise StaleHead(f"the ledger's head is read as version {head} of epoch {epoch}, and epoch {self.epoch} is known")
        self.epoch = epoch
        return head
