"""What runs beside the demo's edits: clients that never stop, and a sampler of the machine's memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from errata.client.client import Client, ErrataError

NUM_STREAMS, PROMPTS_PER_REQUEST = 2, 4
MAX_TOKENS = 5


@dataclass
class Traffic:
    """Closed-loop clients. Counts failed requests, and answers older than an edit that had already returned.

    `applied` is the newest version whose edit request has returned.
    """

    url: str
    prompts: list[str]
    applied: int = 0
    num_requests: int = 0
    failed: list[str] = field(default_factory=list)
    num_unversioned: int = 0
    num_stale: int = 0
    num_mixed: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests from `NUM_STREAMS` threads while the block runs."""
        threads = [threading.Thread(target=self._request, args=(i * 7,), daemon=True) for i in range(NUM_STREAMS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join(timeout=30)

    def _request(self, offset: int) -> None:
        client, i = Client(self.url, retry_s=0), offset
        while not self.stopping.is_set():
            i, expected = i + 1, self.applied
            first = i * PROMPTS_PER_REQUEST
            prompts = [self.prompts[(first + j) % len(self.prompts)] for j in range(PROMPTS_PER_REQUEST)]
            try:
                self._count(client.complete(prompts, MAX_TOKENS).get("errata"), expected)
            except (ErrataError, OSError) as failure:
                with self.lock:
                    self.num_requests += 1
                    self.failed.append(str(failure)[:200])
            time.sleep(0.02)

    def _count(self, stamp: dict[str, int] | None, expected: int) -> None:
        with self.lock:
            self.num_requests += 1
            if not stamp:
                self.num_unversioned += 1
                return
            self.num_stale += stamp["version_min"] < expected
            self.num_mixed += stamp["version_min"] != stamp["version_max"]


class MemoryPeak:
    """The largest rise of the machine's used memory since the start, sampled twice a second."""

    def __init__(self) -> None:
        self._start = self._peak = psutil.virtual_memory().used
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self._peak = max(self._peak, psutil.virtual_memory().used)
            time.sleep(0.5)

    @property
    def gib(self) -> float:
        return round((self._peak - self._start) / 2**30, 2)
