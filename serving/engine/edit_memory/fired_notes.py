"""Notes of the edits that fire inside a vLLM worker, under the name of their request, until the replica takes them.

R requests in a step.
"""

from __future__ import annotations

from typing import Any

from errata.edit_memory.bank import Bank
from errata.edit_memory.lookup import NONE, Fired

NAME = "errata_request"  # of a request's extra arguments: the name under which its edits are noted
MAX_KEPT = 4096  # requests; those whose clients have left are never taken


class FiredNotes:
    """The notes of one worker; `runner` is vLLM's V1 runner, which knows the request of each row of a step."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.of_request: dict[str, dict[str, float]] = {}

    def add(self, bank: Bank, found: Fired) -> None:
        """Note the edits of the rows that fire in a step, but for the first parts of a long prompt, which decide no token."""
        is_part_R = self.runner.discard_request_mask.np
        for place in (found.row_T != NONE).nonzero()[:, 0].tolist():
            request = self.runner.requests[self.runner.input_batch.req_ids[place]]
            name = (request.sampling_params.extra_args or {}).get(NAME)
            if name is None or is_part_R[place]:
                continue
            edit, score = bank.record_of_row(int(found.row_T[place])).edit, float(found.score_T[place])
            noted = self.of_request.setdefault(name, {})
            noted[edit] = max(score, noted.get(edit, score))
        while len(self.of_request) > MAX_KEPT:
            del self.of_request[next(iter(self.of_request))]

    def take(self, name: str) -> list[tuple[str, float]]:
        """Return the edits that fired for a request, each with its best cosine, and forget them."""
        return list(self.of_request.pop(name, {}).items())
