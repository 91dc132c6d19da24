"""Processes beside the demo's edits: clients that never stop, and a sampler of the machine's memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import psutil

from errata.client.client import Client, ErrataError
from errata.text.dialogue import Dialogue, Prompt

NUM_STREAMS, PROMPTS_PER_REQUEST = 2, 4
STREAM_S, JOIN_S = 120, 60

Interval = tuple[float, float]
VersionRange = dict[str, int]  # `version_min` and `version_max` of an answer


@dataclass
class Traffic:
    """`num_streams` closed-loop clients: a dialogue is answered as a stream, texts are completed four at a time.

    Each waits `pause_s` seconds after an answer.

    Counts failed requests, and answers older than an edit that had already returned. `applied` is the newest version whose
    edit request has returned; `streams` are the times at which the tokens of each stream arrived.
    """

    url: str
    prompts: Sequence[Prompt]
    max_tokens: int
    num_streams: int = NUM_STREAMS
    pause_s: float = 0.02
    applied: int = 0
    num_requests: int = 0
    failed: list[str] = field(default_factory=list)
    num_unversioned: int = 0
    num_stale: int = 0
    num_mixed: int = 0
    streams: list[list[float]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests from `num_streams` threads while the block runs."""
        threads = [threading.Thread(target=self._request, args=(i * 7,), daemon=True) for i in range(self.num_streams)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join(timeout=JOIN_S)

    def _request(self, offset: int) -> None:
        i = offset
        with Client(self.url, retry_s=0) as client, httpx.Client(base_url=self.url, timeout=STREAM_S) as http:
            while not self.stopping.is_set():
                i, expected = i + 1, self.applied
                try:
                    self._count(self._answered(client, http, i), expected)
                except (ErrataError, OSError, httpx.HTTPError) as failure:
                    with self.lock:
                        self.num_requests += 1
                        self.failed.append(str(failure)[:200] or type(failure).__name__)
                self.stopping.wait(self.pause_s)

    def _answered(self, client: Client, http: httpx.Client, number: int) -> VersionRange | None:
        """Send the request of a number and return the versions that answered."""
        prompt = self.prompts[number % len(self.prompts)]
        if isinstance(prompt, Dialogue):
            return self._streamed(chat_events(http, client.models()[0], prompt, self.max_tokens))
        first = number * PROMPTS_PER_REQUEST
        chosen = [self.prompts[(first + j) % len(self.prompts)] for j in range(PROMPTS_PER_REQUEST)]
        return client.complete([text for text in chosen if isinstance(text, str)], self.max_tokens).get("errata")

    def _streamed(self, events: Iterator[dict[str, Any]]) -> VersionRange | None:
        """Read a streamed answer, note when its tokens arrive, and return the versions that gave it."""
        times: list[float] = []
        versions: VersionRange | None = None
        for event in events:
            versions = event.get("errata", versions)
            if any(choice["delta"].get("content") for choice in event["choices"]):
                times.append(time.time())
        with self.lock:
            self.streams.append(times)
        return versions

    def _count(self, versions: VersionRange | None, expected: int) -> None:
        with self.lock:
            self.num_requests += 1
            if not versions:
                self.num_unversioned += 1
                return
            self.num_stale += versions["version_min"] < expected
            self.num_mixed += versions["version_min"] != versions["version_max"]


def chat_events(http: httpx.Client, model: str, dialogue: Dialogue, max_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield the events of a streamed answer. Raises `ErrataError` for a refusal and for a stream that breaks off.

    The stream goes on after the end token: a short answer would rarely be under way when versions are swapped.
    """
    body = {"model": model, "messages": dialogue.to_json(), "max_tokens": max_tokens, "temperature": 0}
    body |= {"stream": True, "ignore_eos": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.is_error:
            answer.read()
            raise ErrataError.of(answer)
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ErrataError(500, str(event["error"]), event)
                yield event
    raise ErrataError(0, "the stream ended before its last event")


def gap_figures(streams: Sequence[Sequence[float]], swaps: Sequence[Interval]) -> dict[str, float | None]:
    """Compute percentiles of the milliseconds between two tokens of a stream; `_at_swap` of those that overlap a swap."""
    gaps = [gap for times in streams for gap in pairwise(times)]
    swapped = [(a, b) for a, b in gaps if any(a <= end and begin <= b for begin, end in swaps)]
    return {
        "token_gap_ms_p50": _percentile_ms(gaps, 50),
        "token_gap_ms_p99": _percentile_ms(gaps, 99),
        "token_gap_ms_p99_at_swap": _percentile_ms(swapped, 99),
        "token_gaps_at_swap": len(swapped),
    }


def swaps_of(timings: Sequence[dict[str, Any]]) -> list[Interval]:
    """Begin and end of each swap, in seconds of the clock of `time.time()`."""
    return [(timing["swap_at"], timing["swap_at"] + timing["swap_ms"] / 1e3) for timing in timings]


def _percentile_ms(gaps: Sequence[Interval], percent: float) -> float | None:
    return round(float(np.percentile([1e3 * (b - a) for a, b in gaps], percent)), 1) if gaps else None


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
