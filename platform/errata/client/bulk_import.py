"""A file of edits into the service, in parcels under keys made of their content and place: a second run posts nothing twice.

A parcel's key also covers all that stands before it. Run again after a break, the same file makes the same parcels, and to a
key that it knows the service answers with the edits that it has.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from errata.client.client import Client
from errata.client.errors import ErrataError
from errata.client.responses import EditOut
from errata.edit import SETTLED, Edit

# Part of what the keys are made of: with other sizes, a run that was broken off under the old ones would post twice.
NUM_EDITS = 32
NUM_BYTES = 256 * 1024
NUM_OPEN = 8  # parcels that were posted and are not settled
POSTED_FIELDS = ("prompt", "target", "subject", "rephrasings")


@dataclass(frozen=True)
class EditChunk:
    """Edits that are posted together; `numbers` are their places in the file, from 0."""

    numbers: tuple[int, ...]
    edits: tuple[dict[str, Any], ...]
    past: str  # digest of all that stands before in the file

    @property
    def key(self) -> str:
        return f"import-{_digest(self.past, [self.numbers, self.edits])}"

    def without(self, index: int) -> EditChunk:
        return self._part(i for i in range(len(self.edits)) if i != index)

    def halves(self) -> tuple[EditChunk, EditChunk]:
        middle = len(self.edits) // 2
        return self._part(range(middle)), self._part(range(middle, len(self.edits)))

    def _part(self, kept: Iterable[int]) -> EditChunk:
        indices = tuple(kept)
        numbers, edits = tuple(self.numbers[i] for i in indices), tuple(self.edits[i] for i in indices)
        return replace(self, numbers=numbers, edits=edits)


@dataclass(frozen=True)
class Refusal:
    """An edit that was not made, and why; `number` is its place in the file, from 0."""

    number: int
    edit: dict[str, Any]
    state: str
    reason: str


def edit_chunks(edits: Iterable[Edit], run: str = "") -> Iterator[EditChunk]:
    """The stream cut into parcels of at most NUM_EDITS edits and, unless one edit alone is larger, NUM_BYTES bytes of JSON."""
    past, first, held, num_bytes = _digest("", run), 0, list[dict[str, Any]](), 0
    for number, edit in enumerate(edits):
        data = edit.to_json()
        body = {name: data[name] for name in POSTED_FIELDS if name in data}
        size = len(json.dumps(body))
        if held and (len(held) == NUM_EDITS or num_bytes + size > NUM_BYTES):
            parcel = EditChunk(tuple(range(first, number)), tuple(held), past)
            yield parcel
            past, first, held, num_bytes = _digest(past, parcel.edits), number, [], 0
        held.append(body)
        num_bytes += size
    if held:
        yield EditChunk(tuple(range(first, first + len(held))), tuple(held), past)


def _digest(past: str, content: Any) -> str:
    return hashlib.sha256(f"{past}\n{json.dumps(content, sort_keys=True)}".encode()).hexdigest()


@dataclass
class Import:
    """Posts a stream and counts what becomes of it. `refused` is told of each edit that was not made; `moved` of each answer.

    With `wait`, at most NUM_OPEN parcels are under way, and `run` returns when all are settled; memory does not grow with the
    stream. Raises `ErrataError` when the service does not answer, or refuses more than single edits.
    """

    client: Client
    refused: Callable[[Refusal], None]
    moved: Callable[[], None]
    wait: bool = True
    num_posted: int = 0
    states: Counter[str] = field(default_factory=Counter)
    _num_turned_away: int = 0
    _open: deque[EditChunk] = field(default_factory=deque)

    @property
    def num_done(self) -> int:
        """Posted, or refused before they were queued."""
        return self.num_posted + self._num_turned_away

    def run(self, edits: Iterable[Edit], name: str = "") -> None:
        for parcel in edit_chunks(edits, name):
            self._post(parcel)
            while len(self._open) >= NUM_OPEN:
                self._settle()
        while self._open:
            self._settle()

    def _post(self, parcel: EditChunk) -> None:
        """One edit that the service will not queue must not keep the others of its parcel back, nor must many."""
        while parcel.edits:
            try:
                answer = self.client.edit(parcel.edits, wait=False, key=parcel.key)
            except ErrataError as refusal:
                if refusal.status == 413 and len(parcel.edits) > 1:
                    first, parcel = parcel.halves()
                    self._post(first)
                    continue
                index = _at_fault(refusal, len(parcel.edits))
                if index is None:
                    raise
                self._count(parcel, [(index, "rejected", _reason(refusal))])
                self._num_turned_away += 1
                parcel = parcel.without(index)
                continue
            self.num_posted += len(parcel.edits)
            if self.wait and not _are_settled(answer["edits"]):
                self._open.append(parcel)
            else:
                self._count_all(parcel, answer["edits"])
            self.moved()
            return

    def _settle(self) -> None:
        """The oldest open parcel's fate: posted again under its key, the service tells it when it is known."""
        parcel = self._open[0]
        try:
            edits: Sequence[EditOut] = self.client.edit(parcel.edits, wait=True, key=parcel.key)["edits"]
        except ErrataError as refusal:
            edits = refusal.answer.get("edits") or []
            if len(edits) != len(parcel.edits):
                raise
        if _are_settled(edits):
            self._open.popleft()
            self._count_all(parcel, edits)
            self.moved()

    def _count_all(self, parcel: EditChunk, edits: Sequence[EditOut]) -> None:
        self._count(parcel, [(i, edit["state"], edit.get("reason", "")) for i, edit in enumerate(edits)])

    def _count(self, parcel: EditChunk, fates: Sequence[tuple[int, str, str]]) -> None:
        for index, state, reason in fates:
            self.states[state] += 1
            if state in ("rejected", "superseded"):
                self.refused(Refusal(parcel.numbers[index], parcel.edits[index], state, reason))


def _are_settled(edits: Sequence[EditOut]) -> bool:
    return all(edit["state"] in SETTLED for edit in edits)


def _at_fault(refusal: ErrataError, num_edits: int) -> int | None:
    """Which edit of the parcel the service will not have; None if it is not about one."""
    if refusal.status == 413 and num_edits == 1:
        return 0
    index = refusal.edit
    return index if refusal.status == 422 and type(index) is int and 0 <= index < num_edits else None


def _reason(refusal: ErrataError) -> str:
    """About the first edit alone, and without its place in the parcel: `edit 3, target: too long; edit 5, …`."""
    reason = refusal.message.split("; edit ")[0]
    return reason.partition(", ")[2] if reason.startswith(f"edit {refusal.edit}, ") else reason
