"""Down-date: the later batches of a ledger solved again without chosen edits, from the factors and states that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errata.delta.kinds import Delta, added_up, stored
from errata.delta.parts import Piece, pieces
from errata.delta.weight_delta import WeightDelta
from errata.editors.normal_equations import Call, NormalEquations, not_additive
from errata.editors.state import EditorState
from errata.history.lineage import MadeBatch
from errata.history.revert_context import RevertContext
from errata.history.revert_selection import RevertSelection
from errata.ledger import Ledger, Version


def without_edits(
    context: RevertContext, selection: RevertSelection, parent: int, later: Sequence[Version]
) -> tuple[tuple[MadeBatch, ...], list[Delta], EditorState]:
    """Solve the batches of `later`, which follow `parent` to the head, for the edits that stay.

    Returns the batches that are left, with the change of each as the ledger gives it back, and the state after them. Raises
    `EditRejected`, with the code `not_additive` for a history that is not made of batches of this editor alone.
    """
    equations = context.editor.normal_equations(context.inspector.model)
    if equations is None:
        raise not_additive(f"what {context.origin[0]} writes does not follow from keys and targets alone")
    _check_history(context, parent, later)
    pairs = [pair for version in later for pair in selection.pairs(version)]
    calls = [own for version in later for own in _calls(context.ledger, equations, selection, version)]
    before = context.ledger.state(parent) or context.editor.start(context.inspector.model, context.inspector.spec)
    after = context.ledger.state(context.version)
    assert after is not None, "version 0 holds no edits to select"
    solved, state = equations.without([call for own in calls for call in own], before, after)
    changes = iter(solved)
    left: list[MadeBatch] = []
    deltas: list[Delta] = []
    for (_, stays), own in zip(pairs, calls, strict=True):
        delta = added_up([next(changes) for _ in own])
        if any((stays.edits, *stays.again)):
            left.append(MadeBatch(stays.edits, tuple(filter(None, stays.again))))
            deltas.append(stored(delta))
    if not all(isinstance(delta, WeightDelta) and delta.is_finite for delta in deltas):
        raise not_additive("the change is not finite")
    return tuple(left), deltas, state


def _check_history(context: RevertContext, parent: int, later: Sequence[Version]) -> None:
    """Raise `EditRejected` if the head is not `parent` with the versions `later`, all made by this editor and artifact."""
    ledger = context.ledger
    since = [number for number in ledger.chain(context.version) if number > parent]
    if since != [version.number for version in later]:
        raise not_additive("an earlier revert subtracted a version, which the editor's state still holds")
    origins = {(version.editor, version.plan) for version in [*later, *([ledger.version(parent)] if parent else [])]}
    if origins - {context.origin}:
        raise not_additive("another editor or artifact made one of the versions")


def _calls(ledger: Ledger, equations: NormalEquations, selection: RevertSelection, version: Version) -> Iterator[list[Call]]:
    """Yield the editor's calls for each batch of a version, with the edits that stay of each."""
    pairs, delta = selection.pairs(version), ledger.delta(version.number)
    if not isinstance(delta, WeightDelta):
        raise not_additive(f"version {version.number} is a change of a memory")
    parts = {name: pieces(part) for name, part in delta}
    if any(len(own) != len(pairs) for own in parts.values()):
        raise not_additive(f"version {version.number} does not hold the change of each batch")
    for i, (was, stays) in enumerate(pairs):
        made = [
            (edits, left) for edits, left in zip((was.edits, *was.again), (stays.edits, *stays.again), strict=True) if edits
        ]
        own: dict[str, Piece] = {name: of_batch[i] for name, of_batch in parts.items()}
        yield equations.calls(own, made)
