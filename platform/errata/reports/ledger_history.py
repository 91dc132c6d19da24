"""What a ledger's files tell of it: where each version stands, what the guard said, how the head was moved, which edits failed.

Ledgers of earlier formats say less: what a scorecard lacks is None here, and nothing is made up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errata.guard.limits import Limit
from errata.history.lineage import taken_out
from errata.ledger import Ledger, LedgerDamaged, Version

Outcome = Literal["published", "warned", "refused"]


@dataclass(frozen=True)
class Point:
    """A version, and the number of edits that were made up to and with it; `is_main` if the newest version comes from it.

    `held` is how many of those are still in it: not what a revert has subtracted.
    """

    version: Version
    edits: int
    is_main: bool
    held: int

    def share(self, name: str) -> float | None:
        return number(self.version.scorecard, name)


@dataclass(frozen=True)
class Event:
    """The guard's word on an update: it became `version`, or it was refused, and then `version` is the one it was made on."""

    time: str
    outcome: Outcome
    version: int
    what: str
    reasons: tuple[str, ...]
    scores: Mapping[str, Any]


@dataclass(frozen=True)
class Move:
    """The head was moved, when `after` was the newest version."""

    time: str
    before: int
    version: int
    after: int


@dataclass(frozen=True)
class Failed:
    """An edit that the version which made it does not answer by its target, and what it says instead."""

    version: int
    prompt: str
    target: str
    answer: str


@dataclass(frozen=True)
class History:
    """All of it, in the order of time. `points` are without version 0, which holds no edits."""

    directory: Path
    base: Mapping[str, Any]
    head: int
    started: str
    points: tuple[Point, ...]
    events: tuple[Event, ...]
    moves: tuple[Move, ...]

    @classmethod
    def read(cls, directory: str | Path) -> History:
        """Raises `FileNotFoundError` if no ledger is there, `ValueError` naming a version whose files are damaged."""
        ledger = Ledger.open(directory)
        try:
            versions = [ledger.version(number) for number in ledger.folders.numbers()]  # one that is damaged is not left out
        except LedgerDamaged as wrong:
            raise ValueError(f"the ledger in {directory} cannot be read: {wrong}") from None
        made = [_published(version) for version in versions[1:]]
        events = sorted([*made, *map(_refused, ledger.refusals())], key=lambda event: event.time)
        points = _points(versions)
        return cls(
            Path(directory),
            ledger.base,
            ledger.head,
            versions[0].created,
            points,
            tuple(events),
            tuple(Move(move["time"], move["before"], move["version"], move["after"]) for move in ledger.head_log()),
        )

    @property
    def main(self) -> list[Point]:
        return [point for point in self.points if point.is_main]

    @property
    def failed(self) -> list[Failed]:
        """The newest first."""
        found = []
        for point in reversed(self.points):
            for one in point.version.scorecard.get("failed") or ():
                words = (str(one.get(name, "")) for name in ("prompt", "target", "answer"))
                found.append(Failed(point.version.number, *words))
        return found

    def limits(self, name: str) -> list[tuple[float, Limit]]:
        """The guard's limits of that name, each with the number of edits from which on it held; none if no update says so."""
        edits = {0: 0, **{point.version.number: point.edits for point in self.main}}
        told = [(edits[e.version], limit) for e in self.events if e.version in edits and (limit := _limit(e.scores, name))]
        told.sort(key=lambda one: one[0])
        return [one for before, one in zip([None, *told], told, strict=False) if before is None or before[1] != one[1]]

    def edits_at(self, version: int) -> int:
        """How many edits were made up to and with `version`."""
        return next((point.edits for point in self.points if point.version.number == version), 0)

    def held_by(self, version: int) -> int:
        """How many edits `version` holds."""
        return next((point.held for point in self.points if point.version.number == version), 0)


def number(card: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a scorecard, if it has it."""
    value = card.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _limit(card: Mapping[str, Any], name: str) -> Limit | None:
    """What the update was judged by; a bound that is None in JSON is infinite."""
    bounds = (card.get("limits") or {}).get(name)
    return Limit(*(math.inf if bound is None else bound for bound in bounds)) if bounds else None


def _points(versions: Sequence[Version]) -> tuple[Point, ...]:
    parents = {version.number: version.parent or 0 for version in versions}  # a damaged version that was set aside is not there
    own = {version.number: len(version.edits) for version in versions}
    edits, held = {0: 0}, {0: 0}
    for version in versions[1:]:
        number, parent = version.number, version.parent or 0
        edits[number] = edits.get(parent, 0) + own[number]
        held[number] = held.get(parent, 0) + own[number] - sum(own.get(gone, 0) for gone in taken_out(version))
    main: set[int] = set()
    ancestor = versions[-1].number
    while ancestor:
        main.add(ancestor)
        ancestor = parents.get(ancestor, 0)
    return tuple(Point(v, edits[v.number], v.number in main, held[v.number]) for v in versions[1:])


def _published(version: Version) -> Event:
    warnings = tuple(str(warning) for warning in version.scorecard.get("warnings") or ())
    count = len(version.edits)
    what = f"{count} edit{'' if count == 1 else 's'}"
    return Event(version.created, "warned" if warnings else "published", version.number, what, warnings, version.scorecard)


def _refused(record: Mapping[str, Any]) -> Event:
    edit = record.get("edit") or {}
    where = f"{record['field']}: " if record.get("field") else ""
    reason = where + str(record.get("reason", "")).removeprefix("the guard refuses it: ")
    what = f"{edit.get('prompt', '')} → {edit.get('target', '')}"
    return Event(
        str(record.get("time", "")), "refused", int(record.get("parent") or 0), what, (reason,), record.get("scores") or {}
    )
