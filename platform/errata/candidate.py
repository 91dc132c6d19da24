"""Edit, measure, guard: make a version that may be appended to the ledger."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected, check_edits
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.guard.inspector import Inspector, Observed
from errata.guard.limits import VersionRefused
from errata.model.prefix_cache import BatchCache


@dataclass(frozen=True)
class CandidateVersion:
    """A version that passed the guard and is not in the ledger yet.

    It follows `parent`. `expected_head` is the head at which it was made: the parent, unless a revert branches off earlier.
    """

    parent: int
    expected_head: int
    edits: tuple[Edit, ...]
    delta: WeightDelta
    state: EditorState
    scorecard: dict[str, Any]
    observed: Observed | None = None  # An argument of `Inspector.committed`.


def make_candidate(editor: Editor, batch: EditBatch, state: EditorState, inspector: Inspector, head: int) -> CandidateVersion:
    """Edit the inspector's model, which is at version `head` with the editor's `state`, and measure the result.

    The model is unchanged afterwards. Raises `EditRejected` from the editor, and `VersionRefused` from the guard.
    """
    check_edits(batch.edits, inspector.model.tokenizer, inspector.model.max_tokens)
    began = time.perf_counter()
    try:
        cache = BatchCache.of(inspector.model, inspector.spec.names, batch)
        delta, after = editor.edit(inspector.model, batch, state, cache)
        edited = time.perf_counter()
        found, observed = inspector.measure(batch, delta, cache)
    except (ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError) as fault:
        raise EditRejected(f"{type(fault).__name__.lstrip('_')} in the editor: {fault}", code=Code.EDITOR_FAILED) from fault
    verdict, measured = inspector.guard.check(found), {**found.to_json(), "limits": inspector.guard.limits}
    if not verdict.publish:
        raise VersionRefused(verdict.breaches, measured)
    seconds = {"edit_s": round(edited - began, 4), "guard_s": round(time.perf_counter() - edited, 4)}
    card = {**measured, "warnings": list(verdict.warnings), "num_edits": len(batch), "method": "free", **seconds}
    return CandidateVersion(head, head, batch.edits, delta, after, card, observed)
