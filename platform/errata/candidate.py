"""Edit, measure, guard: make a version that may be appended to the ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected, Fault
from errata.editors.editor import Editor
from errata.editors.repeated import edit_again
from errata.editors.state import EditorState
from errata.guard.inspector import Inspector, Observed
from errata.guard.limits import Measurements, VersionRefused
from errata.model.edit_check import check_edits
from errata.model.prefix_cache import BatchCache

MAX_REPEATS = 4  # An edit alone is made again so often, until it is answered.


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


def make_candidate(
    editor: Editor,
    batch: EditBatch,
    state: EditorState,
    inspector: Inspector,
    head: int,
    before: Sequence[str] | None = None,
) -> CandidateVersion:
    """Edit the inspector's model, which is at version `head` with the editor's `state`, and measure the result.

    The model is unchanged afterwards. `before` are its answers to the edits, for the scorecard. Each edit must be answered by
    its target, unless the guard is not strict: a single edit is made again until it is, at most `MAX_REPEATS` times, within
    the guard and without the loss of earlier edits. Raises `EditRejected` from the editor and for edits that are not answered,
    and `VersionRefused` from the guard.
    """
    check_edits(batch.edits, inspector.model.renderer, inspector.model.max_tokens)
    try:
        return _made(editor, batch, state, inspector, head, before)
    except (ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError) as fault:
        raise EditRejected(f"{type(fault).__name__.lstrip('_')} in the editor: {fault}", code=Code.EDITOR_FAILED) from fault


def _made(
    editor: Editor,
    batch: EditBatch,
    state: EditorState,
    inspector: Inspector,
    head: int,
    before: Sequence[str] | None,
) -> CandidateVersion:
    seconds, num_repeats, guard = {"edit_s": 0.0, "guard_s": 0.0}, 0, inspector.guard
    cache = BatchCache.of(inspector.model, inspector.spec.names, batch)
    began = time.perf_counter()
    made = editor.edit(inspector.model, batch, state, cache)
    weaker: Measurements | None = None  # The last measurement, of an edit that is not answered.
    while True:
        edited = time.perf_counter()
        found, observed = inspector.measure(batch, made[0], cache)
        verdict, measured = guard.check(found), {**found.to_json(), "limits": guard.limits}
        seconds = {"edit_s": seconds["edit_s"] + edited - began, "guard_s": seconds["guard_s"] + time.perf_counter() - edited}
        if not verdict.publish:
            if weaker is not None:  # The guard refuses the stronger edit alone.
                raise ineffective(batch, weaker, num_repeats, f"; one more time, {'; '.join(map(str, verdict.breaches))}")
            raise VersionRefused(verdict.breaches, measured)
        if weaker is not None and found.lost_retention and guard.strict:  # Strength at the cost of earlier edits is no gain.
            raise ineffective(batch, weaker, num_repeats, "; one more time, earlier edits would no longer be answered")
        if not found.unanswered or not guard.strict:
            break
        if len(batch) > 1 or num_repeats == MAX_REPEATS:
            raise ineffective(batch, found, num_repeats + 1)
        weaker, num_repeats, began = found, num_repeats + 1, time.perf_counter()
        made = edit_again(editor, inspector.model, batch, made, cache)
    card = {**measured, "warnings": list(verdict.warnings), "num_edits": len(batch), "method": "free"}
    card |= {name: round(value, 4) for name, value in seconds.items()}
    card |= {"repeats": num_repeats} if num_repeats else {}
    if before is not None:
        card["answers"] = [list(pair) for pair in zip(before, answers_after(batch, found), strict=True)]
    return CandidateVersion(head, head, batch.edits, *made, card, observed)


def answers_after(batch: EditBatch, found: Measurements) -> list[str]:
    """Return the answer to each edit, of two forms in chat: as it is wanted, or what was measured instead."""
    wrong = {i: row["answer"] for i, row in zip(found.unanswered, found.failed, strict=True)}
    return [wrong.get(i, edit.wording(edit.prompts[-1])) for i, edit in enumerate(batch)]


def ineffective(batch: EditBatch, found: Measurements, num_made: int, why: str = "") -> EditRejected:
    """Build the refusal of every edit of a batch that the model, edited `num_made` times, does not answer by its target."""
    times = (f" although the edit was made {num_made} times" if num_made > 1 else "") + why
    reason = (
        "the edited model answers {answer!r} instead of {target!r}{times}. Word the target as the model would say it, give the "
        "subject, or set a larger step of the editor (`errata serve --set`)"
    )
    return EditRejected.of(
        Fault(i, "target", Code.INEFFECTIVE, reason.format(**row, times=times))
        for i, row in zip(found.unanswered, found.failed, strict=True)
    )
