"""A history of the service: what clients asked and were answered, the ledger's chain at the end, and the journal at the end.

Everything here is plain data, so that a history can be written by hand, saved as JSON, and checked without a service.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

LOST, OUT_OF_USE = "lost", "out of use"


@dataclass(frozen=True)
class Operation:
    """One request of a client; times are seconds of one monotonic clock.

    `end` is None if no answer came: the request may then take effect at any time after `begin`. What is `given`, and what the
    `answer` has, by kind:

    * `edit`: edits, wait, key; ids, version, and `made`, the ids of those that were applied and changed something
    * `rollback`: version, expected_head; version
    * `revert`: edits, mode, expected_head; version
    * `ask`: prompt, at_least; text, version_min, version_max, and `version`, which admitted the request
    * `look`: the head, and `replicas`, their versions by name
    * `page`: ids
    """

    kind: str
    begin: float
    end: float | None
    given: Mapping[str, Any] = field(default_factory=dict)
    status: int | None = None
    answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        return self.end is not None and self.status is not None and self.status < 300


class ChainEdit(NamedTuple):
    """An edit of a version."""

    id: str
    prompt: str


@dataclass(frozen=True)
class ChainVersion:
    """A version of the chain; `reverted` is the record of a revert.

    `fate` is `LOST` for a version that was live and was quarantined or retracted, `OUT_OF_USE` for one that was not live then.
    """

    number: int
    parent: int
    edits: tuple[ChainEdit, ...] = ()
    reverted: Mapping[str, Any] = field(default_factory=dict)
    fate: str = ""

    @property
    def subtracted(self) -> frozenset[int]:
        return frozenset(self.reverted["versions"]) if self.reverted.get("mode") == "subtract" else frozenset()

    @property
    def followed(self) -> tuple[int, ...]:
        return (self.parent, self.reverted["head"]) if "head" in self.reverted else (self.parent,)


@dataclass(frozen=True)
class Move:
    """A move of the head, which is logged after version `after`; `is_requested` is False for a recovery and a retraction."""

    version: int
    after: int
    is_requested: bool = True


class Step(NamedTuple):
    """A head, and the cause of it."""

    version: int
    cause: Literal["append", "revert", "move", "loss"]


@dataclass(frozen=True)
class Chain:
    """All versions that ever were, version 0 left out, with all moves of the head in order."""

    versions: tuple[ChainVersion, ...]
    moves: tuple[Move, ...] = ()

    @cached_property
    def by_number(self) -> dict[int, ChainVersion]:
        return {version.number: version for version in self.versions}

    @cached_property
    def heads(self) -> tuple[Step, ...]:
        """All heads in order. An append makes a version the head, and a damaged head gives way to the one before it."""
        steps, last, whole = [Step(0, "append")], Move(0, -1), {0}
        for version in sorted(self.versions, key=lambda one: one.number):
            number = version.number
            steps.append(Step(number, "revert" if version.reverted else "append"))
            for move in (move for move in self.moves if move.after == number):
                last = move
                steps.append(Step(move.version, "move" if move.is_requested else "loss"))
            if version.fate == LOST and steps[-1].version == number:
                newest = max(whole)
                steps.append(Step(newest if newest > last.after else last.version, "loss"))
            whole |= set() if version.fate else {number}
        return tuple(steps)

    @property
    def head(self) -> int:
        return self.heads[-1].version

    @cached_property
    def places(self) -> dict[int, list[int]]:
        """The places in `heads` of each version."""
        found: dict[int, list[int]] = defaultdict(list)
        for place, step in enumerate(self.heads):
            found[step.version].append(place)
        return dict(found)

    @cached_property
    def _held(self) -> dict[int, tuple[ChainEdit, ...]]:
        return {}

    def line(self, number: int) -> list[ChainVersion]:
        """Return the versions whose changes make a version, in order."""
        found: list[ChainVersion] = []
        while number in self.by_number:
            found.append(self.by_number[number])
            number = found[-1].parent
        return found[::-1]

    def held(self, number: int) -> tuple[ChainEdit, ...]:
        """Return the edits that a version holds, in order."""
        if number not in self._held:
            line = self.line(number)
            gone = frozenset[int]().union(*(version.subtracted for version in line))
            kept = [version for version in line if version.number not in gone and not version.subtracted]
            self._held[number] = tuple(edit for version in kept for edit in version.edits)
        return self._held[number]

    def ids(self, number: int) -> frozenset[str]:
        return frozenset(edit.id for edit in self.held(number))

    def follows(self, number: int, wanted: int) -> bool:
        """Say if a version is, or descends from, another one. A revert by replay follows the head that it was made for, too."""
        return wanted in self._ancestors(number)

    def _ancestors(self, number: int) -> set[int]:
        found, waiting = {0}, [number]
        while waiting:
            if (one := waiting.pop()) not in found:
                found.add(one)
                waiting += self.by_number[one].followed if one in self.by_number else ()
        return found

    def taken_out(self, number: int) -> set[str]:
        """Return the edits that reverts took out on the way to a version."""
        cards = [self.by_number[one].reverted for one in self._ancestors(number) if one in self.by_number]
        return {id for card in cards for id in card.get("edits", ())}

    def left_at(self, holds: frozenset[int], first: int, last: int) -> Step | None:
        """Return the step, of those in `first + 1` to `last`, that left the versions `holds`; None if the last one holds."""
        at = next((place for place in range(last, first - 1, -1) if self.heads[place].version in holds), None)
        return None if at is None or at == last else self.heads[at + 1]


@dataclass(frozen=True)
class JournalRow:
    """An edit as the journal has it at the end; `seq` is the order of the posts. `unchanged`: it needed no version."""

    seq: int
    id: str
    prompt: str
    state: str
    version: int | None = None
    unchanged: bool = False
    may_be_refused: bool = False


@dataclass(frozen=True)
class History:
    """All that a run leaves behind for its checks."""

    operations: tuple[Operation, ...]
    chain: Chain
    rows: tuple[JournalRow, ...]

    @cached_property
    def row_by_id(self) -> dict[str, JournalRow]:
        return {row.id: row for row in self.rows}

    def of_kind(self, *kinds: str) -> Iterator[Operation]:
        return (operation for operation in self.operations if operation.kind in kinds)

    @property
    def acknowledged(self) -> list[str]:
        """The ids that a client was given for its edits, each once."""
        return list(dict.fromkeys(id for post in self.of_kind("edit") for id in post.answer.get("ids", ())))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> History:
        data = json.loads(path.read_text())
        versions = [{**one, "edits": tuple(ChainEdit(*edit) for edit in one["edits"])} for one in data["chain"]["versions"]]
        chain = Chain(_all(ChainVersion, versions), _all(Move, data["chain"]["moves"]))
        return cls(_all(Operation, data["operations"]), chain, _all(JournalRow, data["rows"]))


def _all(kind: Any, rows: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(kind(**row) for row in rows)
