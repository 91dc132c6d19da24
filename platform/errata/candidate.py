"""Edit, measure, guard: a version that may be appended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected, check_edits
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.guard.inspector import Inspector
from errata.guard.limits import VersionRefused
from errata.model.prefix_cache import BatchCache


@dataclass(frozen=True)
class Attempt:
    """An update that the guard lets through, the editor's state after it, and what was measured: a version's scorecard."""

    delta: WeightDelta
    state: EditorState
    scorecard: dict[str, Any]


def attempt(editor: Editor, batch: EditBatch, state: EditorState, inspector: Inspector) -> Attempt:
    """Nothing is changed, whatever happens. Raises `EditRejected`, from the editor or with the guard's reasons."""
    check_edits(batch.edits, inspector.model.tokenizer, inspector.model.max_tokens)
    began = time.perf_counter()
    try:
        cache = BatchCache.of(inspector.model, inspector.spec.names, batch)
        delta, after = editor.edit(inspector.model, batch, state, cache)
        edited = time.perf_counter()
        found = inspector.measure(batch, delta, cache)
    except (ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError) as fault:
        raise EditRejected(f"{type(fault).__name__.lstrip('_')} in the editor: {fault}", code=Code.EDITOR_FAILED) from fault
    verdict, measured = inspector.guard.check(found), {**found.to_json(), "limits": inspector.guard.limits}
    if not verdict.publish:
        raise VersionRefused(verdict.breaches, measured)
    seconds = {"edit_s": round(edited - began, 4), "guard_s": round(time.perf_counter() - edited, 4)}
    card = {**measured, "warnings": list(verdict.warnings), "num_edits": len(batch), "method": "free", **seconds}
    return Attempt(delta, after, card)
