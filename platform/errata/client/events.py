"""Server-sent events of the service, decoded from an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import EventSource


@dataclass(frozen=True)
class Event:
    """A server-sent event; `data` is its decoded JSON."""

    name: str
    data: Any


def events_of(response: httpx.Response) -> Iterator[Event]:
    """Yield events in order, without those that have no data or are incomplete at the end.

    Raises `httpx_sse.SSEError` for an answer that is not an event stream, `ValueError` for data that is not JSON.
    """
    for found in EventSource(response).iter_sse():
        if found.data:
            yield Event(found.event or "message", json.loads(found.data))
