"""An edit in the journal with its state: its row, its JSON, and the event of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from errata.edit import SETTLED, Edit, EditRejected
from errata.history.validity import Correction
from serving.worker.fact_keys import question_key

COLUMNS = (
    "seq, id, body, state, version, reason, field, attempts, created, poster, trace, code, unchanged, says, failures, node, "
    "contradicts, approver"
)
LEFT_OUT_OF_EVENTS = ("edit", "says", "answers")
MAX_REASON = 1_000  # characters in an event


class OpenEdit(NamedTuple):
    """An edit that is `queued` or `applying`, without its content: all of them may be larger than the memory."""

    id: str
    state: str


@dataclass(frozen=True)
class Origin:
    """The origin of queued edits: author and reviewer, as names of keys, and the trace context of the request."""

    poster: str | None = None
    approver: str | None = None
    trace: str | None = None


@dataclass(frozen=True)
class Entry:
    """One edit and its state.

    `queued`, `applying`, `applied` (in `version`), `rejected` (for `reason`, about `field`; the model `says` something else),
    `superseded` (in `version`, by a later edit of its batch with the same prompt and another target), or `reverted` (applied
    once, and reverted by `version`).
    `poster` is the author: the name of the access key of the post, and `approver` that of the key which approved a proposal.
    `trace` is the trace context of the post. `unchanged` is the answer of the model that `version` already gave when the edit
    was applied, so that it changed nothing.
    `attempts` counts how often it was taken; in `failures` of them it was found at fault. `node` is the life of the machine in
    which it was taken alone. `contradicts` has the ids, as JSON, of the edits that it contradicted when it was posted.
    """

    seq: int
    id: str
    edit: dict[str, Any]
    state: str
    version: int | None
    reason: str | None
    field: str | None
    attempts: int
    created: float
    poster: str | None = None
    trace: str | None = None
    code: str | None = None
    unchanged: str | None = None
    says: str | None = None
    failures: int = 0
    node: str | None = None
    contradicts: str | None = None
    approver: str | None = None

    @property
    def num_interrupted(self) -> int:
        """The number of attempts that ended with a process and were not this edit's fault."""
        return self.attempts - self.failures

    @property
    def keys(self) -> frozenset[Any]:
        """Keys of the prompts, none if today's rules refuse the edit."""
        with suppress(EditRejected):
            return Edit.from_json(self.edit).keys
        return frozenset()

    @property
    def correction(self) -> Correction | None:
        """The edit as a correction of its day, in UTC; None if today's rules refuse it."""
        with suppress(EditRejected):
            return Correction(Edit.from_json(self.edit), datetime.fromtimestamp(self.created, UTC).date(), self.id)
        return None

    @property
    def is_settled(self) -> bool:
        return self.state in SETTLED

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"id": self.id, "state": self.state, "edit": self.edit, "created": self.created}
        for name in ("version", "reason", "code", "field", "says", "poster", "approver"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        if self.contradicts is not None:
            data["contradicts"] = json.loads(self.contradicts)
        if self.state == "applied":
            data["changed"] = self.unchanged is None
        if self.unchanged is not None:
            data["answers"] = {"before": self.unchanged, "after": self.unchanged}
        return data


def event_of(entry: Entry) -> dict[str, Any]:
    """Return the state of an edit as an event, without its texts, which may fill a MiB, and with the beginning of a reason."""
    data = {name: part for name, part in entry.to_json().items() if name not in LEFT_OUT_OF_EVENTS}
    return data | ({"reason": entry.reason[:MAX_REASON]} if entry.reason is not None else {})


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Read a row of `COLUMNS`."""
    seq, id, body, *rest = row
    return Entry(seq, id, json.loads(body), *rest)


def first_dated_again(entries: Sequence[Entry]) -> int:
    """Return the place of the first edit with a day `valid_from` after one of the same question; their number if none is."""
    if not any(entry.edit.get("valid_from") for entry in entries):
        return len(entries)
    seen = set[str]()
    for place, entry in enumerate(entries):
        if (key := question_key(entry.edit)) in seen and entry.edit.get("valid_from"):
            return place
        seen.add(key)
    return len(entries)
