"""Slots of a replica: how many requests, streams and sequences are under way, of each key and of all callers together.

A slot is taken before the body is read, and given back when the answer has ended. Counts are this replica's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from errata.access_keys import Key
from errata.local.service_limits import ServiceLimits
from serving.api.codes import RequestCode
from serving.api.request_body import BadRequest

OPEN = "open"  # The role of routes that need no key.
POOLED = ("read", "propose", "edit")  # The roles whose routes leave `reserved_requests` to all others.
RETRY_AFTER = "Retry-After", "1"


class Slots:
    """The requests under way. Without a file of keys a caller has no name, and only the limits of all callers hold."""

    def __init__(self, limits: ServiceLimits) -> None:
        self.limits = limits
        self._used: Counter[Hashable] = Counter()

    @contextmanager
    def request(self, key: Key | None, role: str, is_stream: bool) -> Iterator[None]:
        """Hold the slots of a request to a route of this role until the end of the block. Raises `BadRequest`."""
        asked = list(self._asked(key, role, is_stream))
        for name, limit, refusal in asked:
            if self._used[name] >= limit:
                raise refusal
        with self._held({name: 1 for name, _, _ in asked}):
            yield

    def _asked(self, key: Key | None, role: str, is_stream: bool) -> Iterator[tuple[Hashable, int, BadRequest]]:
        """Yield the slots that a request takes, each with its limit and the refusal beyond it."""
        limits = self.limits
        if role == OPEN:
            shown = f"max_requests_open={limits.max_requests_open}"
            message = f"as many requests without a key are under way as this replica takes ({shown})"
            yield OPEN, limits.max_requests_open, _refused(RequestCode.CONCURRENCY_LIMITED, message, None)
        if key is not None:
            limit = limits.max_requests(key.role)
            message = (
                f"this key has {limit:,} requests under way at this replica, the most for the role {key.role} "
                f"(max_requests_{key.role}={limit})"
            )
            yield ("requests", key.name), limit, _refused(RequestCode.CONCURRENCY_LIMITED, message, "Authorization")
        if key is not None and is_stream:
            limit = limits.max_streams
            message = f"this key has {limit:,} event streams open at this replica, the most for one key (max_streams={limit})"
            yield ("streams", key.name), limit, _refused(RequestCode.TOO_MANY_STREAMS, message, "Authorization")
        if role in POOLED:
            limit = limits.max_open_to_keys
            message = (
                f"this replica has {limit:,} requests under way, the most beside the slots for health and administration "
                f"(max_ongoing_requests={limits.max_ongoing_requests}, reserved_requests={limits.reserved_requests})"
            )
            yield "pool", limit, _refused(RequestCode.OVERLOADED, message, None)

    @contextmanager
    def sequences(self, key: Key | None, count: int) -> Iterator[None]:
        """Hold so many sequences of a key until the end of the block. Raises `BadRequest`; more than the limit never fit."""
        if key is None:
            yield
            return
        limit = self.limits.max_sequences(key.role)
        setting = f"max_sequences_{key.role}={limit}"
        if count > limit:
            message = f"the request has {count:,} sequences, and a key of the role {key.role} may have {limit:,} ({setting})"
            raise BadRequest(400, RequestCode.TOO_MANY_SEQUENCES, f"{message}; send fewer prompts, or a smaller n", "n")
        name = ("sequences", key.name)
        if self._used[name] + count > limit:
            message = f"with these {count:,} sequences this key would have more than {limit:,} ({setting})"
            raise _refused(RequestCode.CONCURRENCY_LIMITED, message, "Authorization")
        with self._held({name: count}):
            yield

    @contextmanager
    def _held(self, counts: dict[Hashable, int]) -> Iterator[None]:
        self._used.update(counts)
        try:
            yield
        finally:
            self._used.subtract(counts)
            for name in counts:
                if not self._used[name]:
                    del self._used[name]


def _refused(code: RequestCode, message: str, field: str | None) -> BadRequest:
    return BadRequest(429, code, f"{message}; ask again when one has ended", field, RETRY_AFTER)
