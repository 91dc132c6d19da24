"""Seconds and bytes of a computation, each in a fresh process, so that nothing before it counts."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn


def in_fresh_process(work: Callable[..., Any], *args: Any) -> Any:
    """Call `work(*args)` in a new interpreter and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


class Phases:
    """Seconds by the name of a phase, one entry per repetition."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def medians(self) -> dict[str, float]:
        return {name: median(found) for name, found in self.seconds.items()}


class SavedTensors:
    """Context manager that counts the bytes that graphs hold for their backward pass: now, and at most.

    A storage saved several times counts once; the model's own tensors do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._held: dict[int, int] = {}
        self.now_bytes = self.peak_bytes = 0

    @contextmanager
    def watching(self) -> Iterator[SavedTensors]:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor):
            yield self

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def hold(self, address: int, num_bytes: int, change: int) -> None:
        if address in self._own:
            return
        before = self._held.get(address, 0)
        self._held[address] = before + change
        if 0 in (before, before + change):
            self.now_bytes += change * num_bytes
            self.peak_bytes = max(self.peak_bytes, self.now_bytes)


class _Held:
    """One saved tensor; it is released with its graph."""

    def __init__(self, watch: SavedTensors, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.watch, self.tensor = watch, tensor.detach()
        self.storage = storage.data_ptr(), storage.nbytes()
        watch.hold(*self.storage, 1)

    def __del__(self) -> None:
        self.watch.hold(*self.storage, -1)
