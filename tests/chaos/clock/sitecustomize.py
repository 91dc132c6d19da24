"""A clock that can be moved, for the processes of a service under test: Python imports this module when it starts.

`time.time` is shifted by the seconds in the file that `ERRATA_CHAOS_CLOCK` names, for callers of Errata alone: the clock of the
machine belongs to others, too, and what Ray does when it moves is not tested.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

OURS = ("errata.", "serving.")


def _moved(real: Callable[[], float], path: str) -> Callable[[], float]:
    def now() -> float:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith(OURS):
            return real()
        try:
            with open(path) as shift:
                return real() + float(shift.read() or 0)
        except (OSError, ValueError):  # It is being written.
            return real()

    return now


if path := os.environ.get("ERRATA_CHAOS_CLOCK"):
    time.time = _moved(time.time, path)
