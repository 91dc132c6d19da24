"""What a version of a ledger really holds: its chain's edits, less those that a revert has subtracted again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from errata.edit import Edit
from errata.ledger import Ledger, Version


def _reverted(version: Version) -> dict[str, Any]:
    return version.scorecard.get("reverted") or {}


def taken_out(version: Version) -> tuple[int, ...]:
    """The versions whose changes `version` subtracts; a revert by replay branches off before what it leaves out instead."""
    reverted = _reverted(version)
    return tuple(reverted["versions"]) if reverted.get("mode") == "subtract" else ()


def live_versions(ledger: Ledger, number: int) -> list[Version]:
    """Those of the chain to `number` whose changes and edits are still in it, in order, without version 0. Raises
    `UnknownVersion`."""
    chain = [ledger.version(ancestor) for ancestor in ledger.chain(number)]
    gone = {subtracted for version in chain for subtracted in taken_out(version)}
    return [version for version in chain if version.number not in gone and not taken_out(version)]


def live_edits(ledger: Ledger, number: int) -> Iterator[Edit]:
    """The edits that version `number` holds, in order: `Ledger.edits` also gives those that were reverted."""
    for version in live_versions(ledger, number):
        yield from version.edits


def batches(version: Version) -> list[tuple[Edit, ...]]:
    """The edits of a version as they went through the editor: in one call, unless a revert has made several batches again."""
    edits = iter(version.edits)
    return [tuple(islice(edits, size)) for size in _reverted(version).get("batches", [len(version.edits)])]


def common_ancestor(ledger: Ledger, a: int, b: int) -> int:
    """The last version that both come from. Raises `UnknownVersion`."""
    shared = {0, *ledger.chain(a)} & {0, *ledger.chain(b)}
    return max(shared)
