"""Proposals: edits that wait until someone who may publish approves or refuses them. They are in the journal's database."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from errata.client.responses import ProposalState
from serving.worker.idempotency import digest_of_edits
from serving.worker.journal import Journal
from serving.worker.journal_entry import Origin
from serving.worker.queue_limit import QueueFull, QueueLimit

COLUMNS = "seq, id, body, state, created, author, decided, decider, reason"
RETRY_AFTER_S = 60  # A reviewer makes room, not the service.
KEY_PREFIX = "\nproposals\n"  # Of Idempotency-Keys, which have no line ends: a key of edits is not one of proposals.


class UnknownProposal(LookupError):
    """An id of no proposal."""


class AlreadyDecided(RuntimeError):
    """A decision on a proposal that has one, maybe by another reviewer; the first one holds."""

    def __init__(self, id: str, state: str, decider: str | None) -> None:
        super().__init__(id, state, decider)
        self.id, self.state, self.decider = id, state, decider

    def __str__(self) -> str:
        by = "" if self.decider is None else f" by {self.decider}"
        return f"proposal {self.id} is {self.state}{by} already; nothing was changed"


class OwnProposal(RuntimeError):
    """An approval by the author of a proposal."""


@dataclass(frozen=True)
class ProposedEdit:
    """An edit that `author` proposed, `open` until a `decider` has approved or refused it, at `decided`, maybe for a `reason`.

    Names are those of access keys, None without them; times are in seconds. An approved proposal is an edit of the same id.
    """

    seq: int
    id: str
    edit: dict[str, Any]
    state: ProposalState
    created: float
    author: str | None = None
    decided: float | None = None
    decider: str | None = None
    reason: str | None = None

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> ProposedEdit:
        """Read a row of `COLUMNS`."""
        seq, id, body, *rest = row
        return cls(seq, id, json.loads(body), *rest)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"id": self.id, "state": self.state, "edit": self.edit, "created": self.created}
        others = {name: getattr(self, name) for name in ("author", "decided", "decider", "reason")}
        return data | {name: value for name, value in others.items() if value is not None}

    def to_event(self) -> dict[str, Any]:
        """Return the state as an event, without texts."""
        return {name: part for name, part in self.to_json().items() if name not in ("edit", "reason")}


@dataclass(frozen=True)
class ProposalQuery:
    """The wanted proposals: at most `limit`, maybe of one `state`; the newest before the cursor `before`, newest first.

    With `after`, they are the oldest after that cursor, oldest first.
    """

    limit: int
    state: str | None = None
    before: int | None = None
    after: int | None = None


class ProposalBook:
    """The proposals of a journal. Every method is one transaction, and raises `JournalFailed` as the journal's do."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    @property
    def num_open(self) -> int:
        return int(self.journal.rows("SELECT COUNT(*) FROM proposals WHERE state = 'open'")[0][0])

    def add(
        self,
        edits: Sequence[dict[str, Any]],
        key: str | None = None,
        author: str | None = None,
        limit: QueueLimit | None = None,
    ) -> list[ProposedEdit]:
        """Keep all edits as open proposals, or none. A repeated key of the same author returns the same proposals again.

        Raises `KeyReused` if the key was used with other edits, `QueueFull` if more than `limit` would be open.
        """
        digest, kept_as = digest_of_edits(edits), None if key is None else f"{KEY_PREFIX}{key}"
        bodies = [json.dumps(edit) for edit in edits]
        with self.journal.transaction() as db:
            ids = self.journal.known_post(kept_as, author, digest)
            if ids is None:
                self._check_room(bodies, limit or QueueLimit())
                ids = [uuid.uuid4().hex for _ in edits]
                rows = [(id, body, len(body), time.time(), author) for id, body in zip(ids, bodies, strict=True)]
                names = "(id, body, num_bytes, state, created, author) VALUES (?, ?, ?, 'open', ?, ?)"
                db.executemany(f"INSERT INTO proposals {names}", rows)
                if kept_as is not None:
                    self.journal.keys.add(kept_as, author, digest, ids)
        return [self.get(id) for id in ids]

    def _check_room(self, bodies: Sequence[str], limit: QueueLimit) -> None:
        query = "SELECT COUNT(*), COALESCE(SUM(num_bytes), 0) FROM proposals WHERE state = 'open'"
        ((number, size),) = self.journal.rows(query)
        if number + len(bodies) > limit.max_edits:
            raise QueueFull(number, len(bodies), limit.max_edits, RETRY_AFTER_S, "max_proposals")
        if size + (added := sum(map(len, bodies))) > limit.max_bytes:
            raise QueueFull(size, added, limit.max_bytes, RETRY_AFTER_S, "max_proposal_bytes")

    def get(self, id: str) -> ProposedEdit:
        """Return one proposal. Raises `UnknownProposal`."""
        found = self.journal.rows(f"SELECT {COLUMNS} FROM proposals WHERE id = ?", id)
        if not found:
            raise UnknownProposal(f"there is no proposal {id!r}")
        return ProposedEdit.of(found[0])

    def page(self, asked: ProposalQuery, max_bytes: int = 2**62) -> tuple[list[ProposedEdit], int | None]:
        """List proposals, and the cursor of the next page, None at the end.

        They end before the one with which they would have more than `max_bytes`; one is always there.
        """
        order, beyond, until = ("DESC", "<", ">=") if asked.after is None else ("ASC", ">", "<=")
        start = asked.after if asked.after is not None else 2**62 if asked.before is None else asked.before
        chosen, values = f"seq {beyond} ?", list[Any]([start])
        if asked.state is not None:
            chosen, values = f"state = ? AND {chosen}", [asked.state, start]
        query = f"SELECT seq, num_bytes FROM proposals WHERE {chosen} ORDER BY seq {order} LIMIT ?"
        sizes = self.journal.rows(query, *values, asked.limit + 1)  # First, so that the bodies of one page alone are read.
        if not sizes:
            return [], None
        sums = accumulate(num_bytes for _, num_bytes in sizes[: asked.limit])
        number = max(1, sum(size <= max_bytes for size in sums))
        last = sizes[number - 1][0]
        query = f"SELECT {COLUMNS} FROM proposals WHERE {chosen} AND seq {until} ? ORDER BY seq {order}"
        found = [ProposedEdit.of(row) for row in self.journal.rows(query, *values, last)]
        return found, last if len(sizes) > number else None

    def approve(
        self,
        id: str,
        by: str | None,
        reason: str | None,
        limit: QueueLimit,
        trace: str | None = None,
        contradicts: Sequence[str] = (),
    ) -> ProposedEdit:
        """Queue the edit of an open proposal, under its id, with its author and `by` as approver, in one transaction.

        Raises `UnknownProposal`, `AlreadyDecided`, `OwnProposal` if `by` is the author, and `QueueFull`; it stays open then.
        """
        with self.journal.transaction():
            found = self._open(id)
            if by is not None and by == found.author:
                raise OwnProposal(f"{by} is the author of proposal {id}: another key of the role edit or admin must approve it")
            others = {id: contradicts} if contradicts else None
            self.journal.queue({id: found.edit}, Origin(found.author, by, trace), limit, others)
            self._decide(id, "approved", by, reason)
        return self.get(id)

    def refuse(self, id: str, by: str | None, reason: str | None) -> ProposedEdit:
        """Refuse an open proposal, which its author may do, too. Raises `UnknownProposal` and `AlreadyDecided`."""
        with self.journal.transaction():
            self._open(id)
            self._decide(id, "refused", by, reason)
        return self.get(id)

    def _open(self, id: str) -> ProposedEdit:
        found = self.get(id)
        if found.state != "open":
            raise AlreadyDecided(id, found.state, found.decider)
        return found

    def _decide(self, id: str, state: ProposalState, by: str | None, reason: str | None) -> None:
        query = "UPDATE proposals SET state = ?, decided = ?, decider = ?, reason = ? WHERE id = ?"
        self.journal.rows(query, state, time.time(), by, reason, id)
