"""Budget of a walk over many versions: how many it may read and how long it may take, and how it gives way and stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MAX_PAUSE_S = 0.2


class WalkTooLong(RuntimeError):
    """A walk that has used up its budget: `limit` is the setting's name, `bound` its value, `num_versions` what was read."""

    def __init__(self, limit: str, bound: float, num_versions: int) -> None:
        super().__init__(limit, bound, num_versions)
        self.limit, self.bound, self.num_versions = limit, bound, num_versions

    def __str__(self) -> str:
        if self.limit == "max_walk_versions":
            return (
                f"{self.num_versions:,} versions would be read, and the limit is {self.bound:,} (max_walk_versions="
                f"{self.bound}); choose versions that are closer to each other, or raise the limit"
            )
        read = f"after {self.num_versions:,} versions " if self.num_versions else ""
        return (
            f"{read}the time was used up, {self.bound:g} s (max_walk_s={self.bound:g}); ask when fewer edits are made, ask for "
            "less (versions that are closer to each other, fewer edits), or raise the limit"
        )


class WalkStopped(RuntimeError):
    """A walk that was stopped, because its caller does not wait for the result any more."""


class WalkBudget:
    """A budget for one walk, which runs in one thread and may be stopped from another. Without bounds it only counts.

    While `is_busy` is true the walk rests after each step for as long as that took, so that other work gets half of the time.
    """

    def __init__(
        self, max_versions: float = math.inf, max_s: float = math.inf, is_busy: Callable[[], bool] = lambda: False
    ) -> None:
        self.max_versions, self.max_s, self.is_busy = max_versions, max_s, is_busy
        self.num_versions = 0
        self._began = self._last = time.monotonic()
        self._is_stopped = False

    def stop(self) -> None:
        """Let the next step raise `WalkStopped`."""
        self._is_stopped = True

    def take(self, num_versions: int) -> None:
        """Count versions that are about to be read. Raises `WalkTooLong` if these are too many, and as `step` does."""
        self.num_versions += num_versions
        if self.num_versions > self.max_versions:
            raise WalkTooLong("max_walk_versions", self.max_versions, self.num_versions)
        self.step()

    def step(self) -> None:
        """Give way between two steps of the walk. Raises `WalkTooLong` after the time, and `WalkStopped`."""
        if self._is_stopped:
            raise WalkStopped("nothing waits for this walk any more")
        if time.monotonic() - self._began > self.max_s:
            raise WalkTooLong("max_walk_s", self.max_s, self.num_versions)
        if self.is_busy():
            time.sleep(min(MAX_PAUSE_S, time.monotonic() - self._last))
        self._last = time.monotonic()
