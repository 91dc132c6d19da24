"""The ledger's chain and the journal of a running service, as plain data for the checks."""

from __future__ import annotations

import httpx

from errata.ledger import Ledger, Version
from tests.chaos.history import LOST, OUT_OF_USE, Chain, ChainEdit, ChainVersion, JournalRow, Move
from tests.chaos.workload import may_be_refused, pages


def chain_of(ledger: Ledger, num_earlier: int = 0) -> Chain:
    """Read all versions, those in quarantine included, and all moves of the head.

    The first `num_earlier` moves were made before the clients began, so no client asked for them.
    """
    retracted = ledger.retracted()
    versions = [_version(one, LOST if one.number in retracted else "") for one in ledger.versions() if one.number]
    for gone in ledger.quarantined():
        read = ledger.index.find(gone.number, gone.path)  # Its own files may be damaged.
        fate = LOST if gone.was_live else OUT_OF_USE
        edits = tuple(ChainEdit(str(edit.id), edit.prompt) for edit in gone.edits)
        parent = ledger.index.parent(gone.number, default=gone.number - 1)
        versions.append(_version(read, fate) if read else ChainVersion(gone.number, parent, edits, {}, fate))
    moves = [
        Move(move["version"], move["after"], number >= num_earlier and "withdrawn" not in move and move["by"] != "recovery")
        for number, move in enumerate(ledger.head_log())
    ]
    return Chain(tuple(sorted(versions, key=lambda one: one.number)), tuple(moves))


def _version(version: Version, fate: str) -> ChainVersion:
    edits = tuple(ChainEdit(str(edit.id), edit.prompt) for edit in version.edits)
    return ChainVersion(version.number, version.parent or 0, edits, dict(version.scorecard.get("reverted", {})), fate)


def rows_of(http: httpx.Client) -> tuple[JournalRow, ...]:
    """Read the journal over its pages, oldest edit first."""
    found = list(pages(http))[::-1]
    return tuple(
        JournalRow(
            seq,
            edit["id"],
            edit["edit"]["prompt"],
            edit["state"],
            edit.get("version"),
            edit.get("changed") is False,
            may_be_refused(edit["edit"]["prompt"]),
        )
        for seq, edit in enumerate(found)
    )
