"""The lull after edits: work that follows a version, and that no post waits for, begins when no edit comes for a moment.

On shared cores such work would delay the next edit: what follows one version (a check of the served answers, MLflow's mirror)
takes longer than to make the next one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

QUIET_S, MAX_WAITS = 1.0, 10


@dataclass
class Lull:
    """Waits until no edit was queued or settled for `quiet_s`, and at most `max_waits` times as long: edits may never stop."""

    quiet_s: float = QUIET_S
    max_waits: int = MAX_WAITS
    num_edited: int = 0

    def edited(self) -> None:
        """Note that an edit was queued or settled."""
        self.num_edited += 1

    async def wait(self) -> None:
        """Return in the next lull, or at the end of the longest wait."""
        for _ in range(self.max_waits):
            before = self.num_edited
            await asyncio.sleep(self.quiet_s)
            if self.num_edited == before:
                return
