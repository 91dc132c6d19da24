"""Bulk import: a file of edits is posted in chunks under derived Idempotency-Keys, so that a second run posts no edit twice.

A chunk's key is a digest of its edits, their places in the file, and everything before them. If an import is interrupted and
run again, the same file makes the same chunks, and the service answers a key that it knows with the edits that it has.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from errata.client.client import Client
from errata.client.errors import ErrataError
from errata.client.responses import EditOut
from errata.edit import ORIGIN, SETTLED, Edit

# The keys depend on these sizes: after a change, an import that was interrupted before would post edits twice.
NUM_EDITS = 32
NUM_BYTES = 256 * 1024
NUM_OPEN = 8  # chunks that are posted and not settled
NOT_LIVE = "not live"  # The state, in the counts, of an edit that was applied once.
POSTED_FIELDS = ("prompt", "messages", "form", "target", "aliases", "answer", "subject", "rephrasings", *ORIGIN)


@dataclass(frozen=True)
class EditChunk:
    """Edits that are posted together; `numbers` are their places in the file, from 0."""

    numbers: tuple[int, ...]
    edits: tuple[dict[str, Any], ...]
    past: str  # digest of everything before them in the file

    @property
    def key(self) -> str:
        return f"import-{_digest(self.past, [self.numbers, self.edits])}"

    def without(self, indices: Collection[int]) -> EditChunk:
        return self._part(i for i in range(len(self.edits)) if i not in indices)

    def halves(self) -> tuple[EditChunk, EditChunk]:
        middle = len(self.edits) // 2
        return self._part(range(middle)), self._part(range(middle, len(self.edits)))

    def _part(self, kept: Iterable[int]) -> EditChunk:
        indices = tuple(kept)
        numbers, edits = tuple(self.numbers[i] for i in indices), tuple(self.edits[i] for i in indices)
        return replace(self, numbers=numbers, edits=edits)


@dataclass(frozen=True)
class Refusal:
    """An edit that was not made, with the reason; `number` is its place in the file, from 0.

    `says` is what the model says instead of the target, where it was asked.
    """

    number: int
    edit: dict[str, Any]
    state: str
    reason: str
    code: str | None = None
    says: str | None = None

    @property
    def prompt(self) -> str:
        """The question: the prompt, or the last of the messages."""
        return str(self.edit["prompt"] if "prompt" in self.edit else self.edit["messages"][-1]["content"])


@dataclass(frozen=True)
class _Fate:
    """The state of one edit of a chunk, by its position."""

    index: int
    state: str
    reason: str
    code: str | None
    says: str | None = None


def edit_chunks(edits: Iterable[Edit], run: str = "") -> Iterator[EditChunk]:
    """Cut the stream into chunks of at most NUM_EDITS edits and, unless one edit is larger, NUM_BYTES bytes of JSON."""
    past, first, held, num_bytes = _digest("", run), 0, list[dict[str, Any]](), 0
    for number, edit in enumerate(edits):
        data = edit.to_json()
        body = {name: data[name] for name in POSTED_FIELDS if name in data}
        if edit.before:  # The prompt is the last of the messages.
            del body["prompt"], body["form"]
        size = len(json.dumps(body))
        if held and (len(held) == NUM_EDITS or num_bytes + size > NUM_BYTES):
            chunk = EditChunk(tuple(range(first, number)), tuple(held), past)
            yield chunk
            past, first, held, num_bytes = _digest(past, chunk.edits), number, [], 0
        held.append(body)
        num_bytes += size
    if held:
        yield EditChunk(tuple(range(first, first + len(held))), tuple(held), past)


def _digest(past: str, content: Any) -> str:
    return hashlib.sha256(f"{past}\n{json.dumps(content, sort_keys=True)}".encode()).hexdigest()


@dataclass
class Import:
    """Posting of a stream of edits, with counts of their states.

    `refused` is called with each edit that was not made, `moved` after each answer. With `wait`, at most NUM_OPEN chunks are
    open, and `run` returns when all are settled; memory does not grow with the stream. Raises `ErrataError` if the service does
    not answer, or refuses more than single edits.
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
        """Number of edits that were posted, or refused before they were queued."""
        return self.num_posted + self._num_turned_away

    def run(self, edits: Iterable[Edit], name: str = "") -> None:
        for chunk in edit_chunks(edits, name):
            self._post(chunk)
            while len(self._open) >= NUM_OPEN:
                self._settle()
        while self._open:
            self._settle()

    def _post(self, chunk: EditChunk) -> None:
        """Post a chunk, without the edits that the service does not queue; a chunk that is too large is halved."""
        while chunk.edits:
            try:
                answer = self.client.edit(chunk.edits, wait=False, key=chunk.key)
            except ErrataError as refusal:
                if refusal.status == 413 and len(chunk.edits) > 1:
                    first, chunk = chunk.halves()
                    self._post(first)
                    continue
                faulty = _faulty(refusal, len(chunk.edits))
                if not faulty:
                    raise
                self._count(chunk, faulty)
                self._num_turned_away += len(faulty)
                chunk = chunk.without([fate.index for fate in faulty])
                continue
            self.num_posted += len(chunk.edits)
            if self.wait and not _are_settled(answer["edits"]):
                self._open.append(chunk)
            else:
                self._count_all(chunk, answer["edits"])
            self.moved()
            return

    def _settle(self) -> None:
        """Wait for the oldest open chunk: posted again under its key, it is answered when its edits are settled."""
        chunk = self._open[0]
        try:
            edits: Sequence[EditOut] = self.client.edit(chunk.edits, wait=True, key=chunk.key)["edits"]
        except ErrataError as refusal:
            edits = refusal.answer.get("edits") or []
            if len(edits) != len(chunk.edits):
                raise
        if _are_settled(edits):
            self._open.popleft()
            self._count_all(chunk, edits)
            self.moved()

    def _count_all(self, chunk: EditChunk, edits: Sequence[EditOut]) -> None:
        self._count(chunk, [_fate(i, edit) for i, edit in enumerate(edits)])

    def _count(self, chunk: EditChunk, fates: Iterable[_Fate]) -> None:
        for fate in fates:
            self.states[fate.state] += 1
            if fate.state in ("rejected", "superseded", NOT_LIVE):
                number, edit = chunk.numbers[fate.index], chunk.edits[fate.index]
                self.refused(Refusal(number, edit, fate.state, fate.reason, fate.code, fate.says))


def _fate(index: int, edit: EditOut) -> _Fate:
    if edit.get("live") is False:  # It was made by an earlier run of the same import.
        why = "a rollback or a revert has ended it since it was made; import under another --run to make it again"
        return _Fate(index, NOT_LIVE, why, "not_live")
    return _Fate(index, edit["state"], edit.get("reason", ""), edit.get("code"), edit.get("says"))


def _are_settled(edits: Sequence[EditOut]) -> bool:
    return all(edit["state"] in SETTLED for edit in edits)


def _faulty(refusal: ErrataError, num_edits: int) -> list[_Fate]:
    """List the edits of a chunk that the service does not queue, each with its first fault; empty if it names none."""
    if refusal.status == 413 and num_edits == 1:
        return [_Fate(0, "rejected", refusal.message, refusal.code)]
    if refusal.status != 422:
        return []
    found: dict[int, _Fate] = {}
    for fault in refusal.faults:
        index = fault["edit"]
        if type(index) is int and 0 <= index < num_edits and index not in found:
            reason = f"{fault['field']}: {fault['reason']}" if fault["field"] else fault["reason"]
            found[index] = _Fate(index, "rejected", reason, fault["code"])
    return list(found.values())
