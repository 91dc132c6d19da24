"""Limits of a running service, all in one place: the door, generation, walks over versions, the queue and event streams.

Each is an argument of `serving.app:build` and an option `--limit NAME=VALUE` of `errata serve`. Counts are by replica, those of
a key too. docs/access.md has the table with the answer that each gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from errata.overrides import WrongSetting, overridden


@dataclass(frozen=True)
class ServiceLimits:
    """The limits with their defaults. Sizes are in bytes, times in seconds.

    Ray Serve counts every call of a replica against `max_ongoing_requests`: requests, health checks, swaps. Of these slots
    `reserved_requests` are left to all but the routes of the roles `read`, `propose` and `edit`.
    """

    # A request before its route is called.
    max_body_bytes: int = 2**20
    max_header_bytes: int = 16 * 2**10
    max_url_bytes: int = 8 * 2**10
    max_depth: int = 64
    body_timeout_s: float = 10.0
    # Concurrent requests: of a replica, of a key by its role, and of all callers without a key on the open routes.
    max_ongoing_requests: int = 1024
    reserved_requests: int = 128
    max_requests_read: int = 128
    max_requests_propose: int = 128
    max_requests_edit: int = 192
    max_requests_admin: int = 256
    max_requests_open: int = 32
    # Generation. A sequence is one answer to one prompt: `n` of each prompt.
    max_sequences_read: int = 64
    max_sequences_propose: int = 64
    max_sequences_edit: int = 128
    max_sequences_admin: int = 256
    max_request_tokens: int = 16_384
    max_logprobs: int = 20
    max_structured_bytes: int = 16 * 2**10
    # Walks over the versions: blame and diff.
    max_walk_versions: int = 10_000
    max_walk_s: float = 60.0
    # The queue of edits, the proposals that wait for a decision, and lists.
    max_queue: int = 10_000
    max_queue_bytes: int = 256 * 2**20
    max_proposals: int = 1_000
    max_proposal_bytes: int = 16 * 2**20
    wait_timeout_s: float = 60.0
    max_page_bytes: int = 4 * 2**20
    # Event streams.
    max_streams: int = 16
    max_listeners: int = 256
    max_waiting_events: int = 1_000
    max_stream_bytes: int = 4 * 2**20
    send_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for one in fields(self):
            least = 1024 if one.name == "max_body_bytes" else 0 if one.name in MAY_BE_0 else 1
            value = getattr(self, one.name)
            if isinstance(one.default, float):
                if not 0 < value < math.inf:
                    raise WrongSetting(one.name, f"{value!r} is not a number of seconds above 0; give {one.default:g}")
            elif value < least:
                raise WrongSetting(one.name, f"{value!r} is below {least}; give {one.default}, for example")
        if self.reserved_requests >= self.max_ongoing_requests:
            why = f"{self.reserved_requests} leaves none of max_ongoing_requests={self.max_ongoing_requests} to other requests"
            raise WrongSetting("reserved_requests", f"{why}; give less")

    def max_requests(self, role: str) -> int:
        """Return how many requests a key of this role may have under way."""
        found: int = getattr(self, f"max_requests_{role}")
        return found

    def max_sequences(self, role: str) -> int:
        """Return how many sequences of a key of this role may be generated concurrently."""
        found: int = getattr(self, f"max_sequences_{role}")
        return found

    @property
    def max_open_to_keys(self) -> int:
        """Concurrent requests on the routes of the roles below `admin`, of all callers together."""
        return self.max_ongoing_requests - self.reserved_requests


MAY_BE_0 = ("reserved_requests", "max_logprobs")
NAMES = tuple(one.name for one in fields(ServiceLimits))


def limits_from(settings: Mapping[str, object]) -> ServiceLimits:
    """Make the limits from settings by name, as text or numbers. Raises `WrongSetting`, a `ValueError`, for the first at fault.

    Each is read by itself and all are set in one step, so that the order of those that depend on each other does not count.
    """
    alone = {"reserved_requests": ServiceLimits(max_ongoing_requests=2**31)}
    others = ServiceLimits(reserved_requests=0)
    given = {name: getattr(overridden(alone.get(name, others), name, str(text)), name) for name, text in settings.items()}
    return ServiceLimits(**given)
