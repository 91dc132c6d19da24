"""The readiness of a replica: the time that it has been behind the ledger's head, and the time that a swap has taken.

A swap has two parts. First the files are read and checked (*prepared*), which takes longer for a longer chain; then the engine
is paused and reloads, which does not. Each part has its own bound. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

# A broadcast normally comes within this time after the head has moved; later the replica swaps by itself.
REPAIR_AFTER_S = 0.5
# A replica this long behind the head refuses requests, and is replaced later.
OUT_AFTER_S = 5.0
REPLACE_AFTER_S = 30.0
# A swap that takes longer after the pause hangs; with `wait` it takes as long as the longest answer.
MAX_SWAP_S = {"keep": 60.0, "wait": 600.0}
# Bounds of the preparation. Adding a change of rank 20 of a 4096 x 14336 matrix to the sum takes 0.03 s of CPU (two-core AMD
# EPYC, one thread), one of rank 100 0.12 s; a series of such changes is one part, and takes longer.
PREPARE_S, PREPARE_PART_S, PREPARE_MIB_S = 60.0, 1.0, 1.0


def max_prepare_s(num_parts: int, num_bytes: int) -> float:
    """Return the most seconds to prepare so many parts of so many bytes together: several times the usual time."""
    return PREPARE_S + PREPARE_PART_S * num_parts + PREPARE_MIB_S * num_bytes / 2**20


@dataclass
class Readiness:
    """Tracks whether a replica follows the head.

    `behind_s` is the time for which the head has been another version, without the time of swaps under way. A swap that fails
    does not reset it, so a replica that refuses every swap is late.
    """

    pause: Literal["keep", "wait"]
    clock: Callable[[], float] = time.monotonic
    behind_s: float = 0.0
    _preparing: tuple[float, float] | None = None  # Its begin, and its longest duration.
    _swap_began: float | None = None
    _epoch: int = -1
    _looked: float = field(init=False)

    def __post_init__(self) -> None:
        self._looked = self.clock()

    def prepare_begins(self, max_s: float) -> None:
        self._preparing = self.clock(), max_s

    def swap_begins(self) -> None:
        """Note that the update is prepared and the engine is about to pause."""
        self._preparing, self._swap_began = None, self.clock()

    def swap_ends(self) -> None:
        """Note that the swap has ended or was given up."""
        self._preparing = self._swap_began = None

    def look(self, head: Hashable, version: Hashable, epoch: int) -> None:
        """Compare the head with the served version, each by number and fingerprint.

        Called a few times a second, with the number of swaps as `epoch`.
        """
        passed_s, self._looked = self.clock() - self._looked, self.clock()
        if head == version or epoch != self._epoch:  # It is at the head, or has swapped since.
            self.behind_s, self._epoch = 0.0, epoch
        elif not self.is_under_way:
            self.behind_s += passed_s

    @property
    def is_paused(self) -> bool:
        return self._swap_began is not None

    @property
    def is_under_way(self) -> bool:
        return self._preparing is not None or self.is_paused

    @property
    def swapping_s(self) -> float:
        return 0.0 if self._swap_began is None else self.clock() - self._swap_began

    @property
    def should_repair(self) -> bool:
        return self.behind_s > REPAIR_AFTER_S and not self.is_under_way

    @property
    def is_out(self) -> bool:
        """True if requests should go to another replica."""
        return self.behind_s > OUT_AFTER_S or (self.pause == "keep" and self.swapping_s > OUT_AFTER_S)

    def fault(self) -> str | None:
        """Return why this replica must be replaced, or None."""
        if self.behind_s > REPLACE_AFTER_S:
            return f"the ledger's head was another version for {self.behind_s:.0f} s"
        if self.swapping_s > MAX_SWAP_S[self.pause]:
            return f"a swap has been under way for {self.swapping_s:.0f} s"
        if self._preparing is not None and (took_s := self.clock() - self._preparing[0]) > self._preparing[1]:
            return f"an update has been read for {took_s:.0f} s, longer than the limit of {self._preparing[1]:.0f} s"
        return None
