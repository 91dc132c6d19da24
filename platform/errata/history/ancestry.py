"""Ancestry: the versions that a version follows, so that "at least version N" is a question of lineage and not of numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from errata.history.lineage import live_edits
from errata.ledger import Ledger, UnknownVersion, Version


@dataclass(frozen=True)
class Ancestry:
    """The ancestors of `version`, itself and version 0 included, as runs of consecutive numbers in order.

    A revert by replay branches off before what it takes out, and still follows the head that it was made for: what that head
    held was kept or taken out on purpose, so its ancestors count, too.
    """

    version: int
    runs: tuple[range, ...]

    @classmethod
    def of(cls, ledger: Ledger, number: int, known: Ancestry | None = None) -> Ancestry:
        """Find the ancestors of `number`; those of `known` are not looked up again. Raises as `Ledger.version`."""
        found, runs = {0}, tuple[range, ...]()
        waiting = [number]
        while waiting:
            ancestor = waiting.pop()
            if known is not None and ancestor == known.version:
                runs = known.runs
            elif ancestor not in found:
                found.add(ancestor)
                waiting += followed(ledger.version(ancestor))
        return cls(number, _runs([*runs, *(range(each, each + 1) for each in found)]))

    @property
    def numbers(self) -> list[int]:
        """The ancestors in order."""
        return [number for run in self.runs for number in run]

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self.runs, number, key=lambda run: run.start)
        return place > 0 and number in self.runs[place - 1]


def followed(version: Version) -> tuple[int, ...]:
    """Return the versions that one version follows: its parent, and the head that a revert by replay was made for."""
    reverted = version.scorecard.get("reverted") or {}
    return (version.parent or 0, *((reverted["head"],) if "head" in reverted else ()))


def _runs(ranges: Iterable[range]) -> tuple[range, ...]:
    """Join ranges that touch or overlap."""
    joined: list[range] = []
    for each in sorted(ranges, key=lambda run: run.start):
        if joined and each.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, each.stop))
        else:
            joined.append(each)
    return tuple(joined)


def was_lost(ledger: Ledger, number: int) -> bool:
    """Say if a version was retracted or quarantined, so that its edits were queued again."""
    return number in ledger.retracted() or number in ledger.folders.quarantined_numbers()


def holds_again(ledger: Ledger, number: int, lost: int) -> bool:
    """Say if version `number` holds all edits of a version that was retracted or quarantined."""
    try:
        edits = ledger.version(lost).edits
    except UnknownVersion:
        edits = next((one.edits for one in ledger.quarantined() if one.number == lost), ())
    live = {edit.id for edit in live_edits(ledger, number)}
    return bool(edits) and all(edit.id is not None and edit.id in live for edit in edits)
