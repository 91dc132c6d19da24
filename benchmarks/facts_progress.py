"""Progress of the comparison on the default model: lines on the terminal, with the time to go."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from errata.local.terminal import console
from jobs.workers import time_left

Item = TypeVar("Item")


def say(line: str) -> None:
    console().print(f"  {line}", highlight=False, soft_wrap=True)


def in_parts(items: Sequence[Item], size: int, what: str) -> Iterator[Sequence[Item]]:
    """Yield parts of a sequence, and say after each but the last how many are done and how long the others will take."""
    began = time.monotonic()
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
        done = begin + size
        if done < len(items):
            say(f"{what}: {done}/{len(items)}, {time_left(began, done, len(items))}")
