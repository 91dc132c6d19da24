"""Where the time of a piece of work goes: `with stage("solve"):` inside it, `with measured() as seconds:` around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_found: ContextVar[dict[str, float] | None] = ContextVar("seconds", default=None)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Count the time inside under `name`; nothing is done when nobody measures. Also a decorator."""
    found = _found.get()
    if found is None:
        yield
        return
    start = _now()
    try:
        yield
    finally:
        found[name] = found.get(name, 0.0) + _now() - start


@contextmanager
def stage_seconds() -> Iterator[dict[str, float]]:
    """Seconds by stage, filled as stages end, and `total` when the block ends, also by an exception."""
    found: dict[str, float] = {}
    token = _found.set(found)
    start = _now()
    try:
        yield found
    finally:
        found["total"] = _now() - start
        _found.reset(token)


def _now() -> float:
    """Seconds; a GPU has finished what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
