"""Lineage: the edits that a version holds, which are those of its chain without those that a revert subtracted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from errata.edit import Edit
from errata.ledger import Ledger, Version


def _reverted(version: Version) -> dict[str, Any]:
    return version.scorecard.get("reverted") or {}


def taken_out(version: Version) -> tuple[int, ...]:
    """Return the versions that `version` subtracts. A revert by replay subtracts none: it branches off before them."""
    reverted = _reverted(version)
    return tuple(reverted["versions"]) if reverted.get("mode") == "subtract" else ()


def live_versions(ledger: Ledger, number: int, step: Callable[[], None] = lambda: None) -> list[Version]:
    """Return the versions of the chain to `number` that were not subtracted, in order, without version 0.

    `step` is called before each version is read. Raises `UnknownVersion`.
    """
    chain = []
    for ancestor in ledger.chain(number):
        step()
        chain.append(ledger.version(ancestor))
    gone = {subtracted for version in chain for subtracted in taken_out(version)}
    return [version for version in chain if version.number not in gone and not taken_out(version)]


def live_edits(ledger: Ledger, number: int) -> Iterator[Edit]:
    """Iterate over the edits that version `number` holds, in order. `Ledger.edits` also has those that were reverted."""
    for version in live_versions(ledger, number):
        yield from version.edits


def repairs(ledger: Ledger, number: int) -> dict[str, int]:
    """Return by edit the last live version up to `number` that made it again because the model had lost it."""
    versions = live_versions(ledger, number)
    return {id: version.number for version in versions for id in version.scorecard.get("repaired", ())}


class Moved(NamedTuple):
    """The edits that a consolidation moved: by their ids those that left the memory, and those that went back into it."""

    gone: tuple[str, ...]
    back: tuple[Edit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"edits": list(self.gone), "back": [edit.to_json() for edit in self.back]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Moved:
        return cls(tuple(found["edits"]), tuple(map(Edit.from_json, found["back"])))


class MadeBatch(NamedTuple):
    """Edits that the editor made in one call, and what it then made again on top, round by round, until all were answered.

    Of a consolidation, `again` are the rounds of the weights, and `moved` says what they did to the memory.
    """

    edits: tuple[Edit, ...]
    again: tuple[tuple[Edit, ...], ...] = ()
    moved: Moved | None = None

    def again_to_json(self) -> list[list[dict[str, Any]]]:
        return [[edit.to_json() for edit in made] for made in self.again]


def batches(version: Version) -> list[MadeBatch]:
    """Split the edits of a version into the editor's batches: one, unless a replayed revert made several batches again."""
    edits, reverted = iter(version.edits), _reverted(version)
    sizes = reverted.get("batches", [len(version.edits)])
    own = [tuple(islice(edits, size)) for size in sizes]
    if "again" in version.scorecard or "again" in reverted:
        rounds = reverted.get("again") or [version.scorecard["again"]]
        read = [tuple(tuple(map(Edit.from_json, made)) for made in again) for again in rounds]
        moves = reverted.get("moved") or [version.scorecard.get("consolidated")] * len(own)
        return list(map(MadeBatch, own, read, (None if one is None else Moved.from_json(one) for one in moves)))
    # Versions of earlier releases count how often the whole batch was made again.
    repeats = reverted.get("repeats") or [version.scorecard.get("repeats", 0)] * len(sizes)
    return [MadeBatch(batch, (batch,) * count) for batch, count in zip(own, repeats, strict=True)]


def common_ancestor(ledger: Ledger, a: int, b: int) -> int:
    """Return the last common ancestor. Raises `UnknownVersion`."""
    shared = {0, *ledger.chain(a)} & {0, *ledger.chain(b)}
    return max(shared)
