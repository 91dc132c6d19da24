"""The history of a ledger, read from its files: versions, verdicts of the guard, moves of the head, edits that failed.

Ledgers of earlier formats have less: scores that a scorecard lacks are None.
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
    """A version with the number of edits made up to it; `is_main`: it is an ancestor of the newest version.

    `held` is the number of edits that it still has, without those that a revert subtracted.
    """

    version: Version
    edits: int
    is_main: bool
    held: int

    def share(self, name: str) -> float | None:
        """Return a score of the version."""
        return number(self.version.scorecard, name)


@dataclass(frozen=True)
class GuardEvent:
    """The guard's verdict on an update. `version` is the new version, or the parent of an update that was refused.

    `what` describes the update, `reasons` are the warnings or the reason of a refusal, and `code` is that of the refusal (empty
    in older ledgers).
    """

    time: str
    outcome: Outcome
    version: int
    what: str
    reasons: tuple[str, ...]
    scores: Mapping[str, Any]
    code: str = ""


@dataclass(frozen=True)
class Move:
    """A move of the head from `before` to `version`, at a time when `after` was the newest version."""

    time: str
    before: int
    version: int
    after: int


@dataclass(frozen=True)
class Failed:
    """An edit whose own version does not answer with its target, and the answer that it gives."""

    version: int
    prompt: str
    target: str
    answer: str


@dataclass(frozen=True)
class History:
    """The history of a ledger in the order of time; `points` leave out version 0, which has no edits."""

    directory: Path
    base: Mapping[str, Any]
    head: int
    started: str
    points: tuple[Point, ...]
    events: tuple[GuardEvent, ...]
    moves: tuple[Move, ...]

    @classmethod
    def read(cls, directory: str | Path) -> History:
        """Read a ledger. Raises `FileNotFoundError` if there is none, and `ValueError` with a version that is damaged."""
        ledger = Ledger.open(directory)
        try:
            versions = [ledger.version(number) for number in ledger.folders.numbers()]
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
        """The newest version and its ancestors, oldest first."""
        return [point for point in self.points if point.is_main]

    @property
    def failed(self) -> list[Failed]:
        """The edits that failed, newest first."""
        found = []
        for point in reversed(self.points):
            for one in point.version.scorecard.get("failed") or ():
                words = (str(one.get(name, "")) for name in ("prompt", "target", "answer"))
                found.append(Failed(point.version.number, *words))
        return found

    def limits(self, name: str) -> list[tuple[float, Limit]]:
        """Return the guard's limits of that name, each with the number of edits since which it applied.

        The list is empty if no scorecard has them.
        """
        edits = {0: 0, **{point.version.number: point.edits for point in self.main}}
        found = [(edits[e.version], limit) for e in self.events if e.version in edits and (limit := _limit(e.scores, name))]
        found.sort(key=lambda one: one[0])
        return [one for before, one in zip([None, *found], found, strict=False) if before is None or before[1] != one[1]]

    def edits_at(self, version: int) -> int:
        """Count the edits made up to `version`, inclusive."""
        return next((point.edits for point in self.points if point.version.number == version), 0)

    def held_by(self, version: int) -> int:
        """Count the edits that `version` still has."""
        return next((point.held for point in self.points if point.version.number == version), 0)


def number(card: Mapping[str, Any], name: str) -> float | None:
    """Return a finite number of a scorecard, None if it has none of that name."""
    value = card.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _limit(card: Mapping[str, Any], name: str) -> Limit | None:
    """Return the limit that the update was judged by; a bound that is None in JSON is infinite."""
    bounds = (card.get("limits") or {}).get(name)
    return Limit(*(math.inf if bound is None else bound for bound in bounds)) if bounds else None


def _points(versions: Sequence[Version]) -> tuple[Point, ...]:
    parents = {version.number: version.parent or 0 for version in versions}  # without quarantined versions
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


def _published(version: Version) -> GuardEvent:
    warnings = tuple(str(warning) for warning in version.scorecard.get("warnings") or ())
    count = len(version.edits)
    what = f"{count} edit{'' if count == 1 else 's'}"
    return GuardEvent(version.created, "warned" if warnings else "published", version.number, what, warnings, version.scorecard)


def _refused(record: Mapping[str, Any]) -> GuardEvent:
    edit = record.get("edit") or {}
    where = f"{record['field']}: " if record.get("field") else ""
    return GuardEvent(
        time=str(record.get("time", "")),
        outcome="refused",
        version=int(record.get("parent") or 0),
        what=f"{edit.get('prompt', '')} → {edit.get('target', '')}",
        reasons=(where + str(record.get("reason", "")),),
        scores=record.get("scores") or {},
        code=str(record.get("code") or ""),
    )
