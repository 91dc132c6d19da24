"""Rules by which the client repeats a request."""

from __future__ import annotations

from errata.client.errors import ErrataError

PAUSE_S = 1.0  # before another try, if the service does not say when
# Status codes after which a request is repeated; 0 is a broken connection. A 503 may arrive after the work was done, so only
# requests without effect, or with one effect (edits under their key), are repeated then: a second rollback could undo the
# change that another caller made in between.
IF_ASKED = frozenset({429, 503})
ALWAYS = frozenset({0, 429, 503})
IF_NOTHING_WAS_DONE = frozenset({429})


def wait_s_of(error: ErrataError, again: frozenset[int]) -> float | None:
    """Compute the seconds until the request may be repeated; None if it may not."""
    if error.status not in again:
        return None
    if error.retry_after_s is not None:
        return max(error.retry_after_s, 0.1)
    return PAUSE_S if 0 in again else None
