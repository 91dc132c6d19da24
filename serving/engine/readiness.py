"""When a replica is out of rotation: how long it has been behind the ledger's head, and how long a swap has taken.

A swap has two parts: its files are read and checked (*prepared*), which takes as long as there is to sum, then the engine is
paused and reloads, which does not. Each has a bound of its own. Times are seconds of one clock that only goes forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

# A broadcast normally comes within this time after the head has moved; later the replica helps itself.
REPAIR_AFTER_S = 0.5
# Behind the head for so long: out of rotation; and for so long: to be replaced.
OUT_AFTER_S = 5.0
REPLACE_AFTER_S = 30.0
# A swap that takes longer from the pause on hangs; with `wait` it takes as long as the longest answer.
MAX_SWAP_S = {"keep": 60.0, "wait": 600.0}
# To prepare one: a change of rank 20 of a 4096 x 14336 matrix is added to the sum in 0.03 s of CPU (two-core AMD EPYC, one
# thread), one of rank 100 in 0.12 s; a series of such changes is one part, and longer.
PREPARE_S, PREPARE_PART_S, PREPARE_MIB_S = 60.0, 1.0, 1.0


def max_prepare_s(num_parts: int, num_bytes: int) -> float:
    """How long it may take to prepare so many changes of a matrix of so many bytes together: several times what it needs."""
    return PREPARE_S + PREPARE_PART_S * num_parts + PREPARE_MIB_S * num_bytes / 2**20


@dataclass
class Readiness:
    """`behind_s`: how long the head has been another version, without the time in which a swap was under way.

    A swap that fails does not excuse what was before it: a replica that is asked again and again, and refuses, is late.
    """

    pause: Literal["keep", "wait"]
    clock: Callable[[], float] = time.monotonic
    behind_s: float = 0.0
    _preparing: tuple[float, float] | None = None  # since when, and for how long it may
    _swap_began: float | None = None
    _epoch: int = -1
    _looked: float = field(init=False)

    def __post_init__(self) -> None:
        self._looked = self.clock()

    def prepare_begins(self, max_s: float) -> None:
        self._preparing = self.clock(), max_s

    def swap_begins(self) -> None:
        """Everything is prepared, the engine is to be paused."""
        self._preparing, self._swap_began = None, self.clock()

    def swap_ends(self) -> None:
        """Or what was prepared is given up."""
        self._preparing = self._swap_began = None

    def look(self, head: int, version: int, epoch: int) -> None:
        """To be called a few times a second: the head, what is served, and how many swaps were made."""
        passed_s, self._looked = self.clock() - self._looked, self.clock()
        if head == version or epoch != self._epoch:  # it is there, or on its way
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
        """Whether requests are better asked of another replica."""
        return self.behind_s > OUT_AFTER_S or (self.pause == "keep" and self.swapping_s > OUT_AFTER_S)

    def fault(self) -> str | None:
        """Why this replica must be replaced; None if it need not."""
        if self.behind_s > REPLACE_AFTER_S:
            return f"the ledger's head was another version for {self.behind_s:.0f} s"
        if self.swapping_s > MAX_SWAP_S[self.pause]:
            return f"a swap has been under way for {self.swapping_s:.0f} s"
        if self._preparing is not None and (took_s := self.clock() - self._preparing[0]) > self._preparing[1]:
            return f"an update has been read for {took_s:.0f} s, for which {self._preparing[1]:.0f} s are more than enough"
        return None
