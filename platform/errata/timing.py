"""Seconds of the stages of a computation: `with timed("solve"):` inside it, `with stage_seconds() as seconds:` around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_found: ContextVar[dict[str, float] | None] = ContextVar("seconds", default=None)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the time inside to the stage `name`, if a `stage_seconds` block is open. Also a decorator."""
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
    """Collect the seconds of each stage as it ends, and `total` when the block ends, also after an exception."""
    found: dict[str, float] = {}
    token = _found.set(found)
    start = _now()
    try:
        yield found
    finally:
        found["total"] = _now() - start
        _found.reset(token)


def _now() -> float:
    """Return the time in seconds, after all work that was given to GPUs."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
