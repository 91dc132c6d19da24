"""Edit, measure, guard: make a version that may be appended to the ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from errata.delta.kinds import Delta
from errata.edit import Code, Edit, EditBatch, EditRejected, Fault
from errata.edit_memory.bank import READ_BEFORE
from errata.editors.editor import Editor
from errata.editors.repeated import edit_again
from errata.editors.state import EditorState
from errata.guard.held_edits import HeldEdit
from errata.guard.inspector import Inspector, Observed
from errata.guard.limits import Measurements, VersionRefused
from errata.model.edit_check import check_edits
from errata.model.prefix_cache import BatchCache

MAX_REPEATS = 4  # Own edits that are not answered are made again so often, and so are earlier ones.


@dataclass(frozen=True)
class CandidateVersion:
    """A version that passed the guard and is not in the ledger yet.

    It follows `parent`. `expected_head` is the head at which it was made: the parent, unless a revert branches off earlier.
    `change` is that of a revert relative to that head; of an edit it is the delta itself.
    """

    parent: int
    expected_head: int
    edits: tuple[Edit, ...]
    delta: Delta
    state: EditorState
    scorecard: dict[str, Any]
    observed: Observed | None = None  # An argument of `Inspector.committed`.
    change: Delta | None = None


def make_candidate(
    editor: Editor,
    batch: EditBatch,
    state: EditorState,
    inspector: Inspector,
    head: int,
    before: Sequence[str | None] | None = None,
) -> CandidateVersion:
    """Edit the inspector's model, which is at version `head` with the editor's `state`, and measure the result.

    The model is unchanged afterwards. `before` are its answers to the edits where they are known, for the scorecard. Unless the
    guard is not strict, each edit must be answered by its target: those that are not, and then earlier edits that would be
    lost, are made again on top, each at most `MAX_REPEATS` times and within the guard. Raises `EditRejected` from the editor
    and for edits that are still not answered, and `VersionRefused` from the guard.
    """
    check_edits(batch.edits, inspector.model.renderer, inspector.model.max_tokens)
    return _made(editor, batch, state, inspector, head, before)


def make_repair(editor: Editor, lost: EditBatch, state: EditorState, inspector: Inspector, head: int) -> CandidateVersion:
    """Make earlier edits again that the version at `head` does not answer any more, as a version without edits of its own.

    Its scorecard has their ids as `repaired`. Raises as `make_candidate`, and `EditRejected` if it loses as many as it repairs.
    """
    made = _made(editor, lost, state, inspector, head, None)  # The edits were accepted by the rules of their time.
    assert made.observed is not None
    if len(made.observed.lost) >= len(lost):
        why = f"{len(made.observed.lost)} other edits would no longer be answered"
        raise EditRejected(why, code=Code.INEFFECTIVE, edit=None if len(lost) > 1 else 0, field="target")
    again = [[edit.to_json() for edit in lost], *made.scorecard.get("again", [])]
    repaired = [edit.id for edit in lost if edit.id is not None]
    return replace(made, edits=(), scorecard={**made.scorecard, "num_edits": 0, "repaired": repaired, "again": again})


@dataclass(frozen=True)
class _Attempt:
    """An update that the guard lets pass, with its measurements; `again` are the edits that were made again in it, by round.

    The earlier edits are asked only if it answers the batch: it cannot be published otherwise.
    """

    made: tuple[Delta, EditorState]
    again: tuple[tuple[Edit, ...], ...]
    found: Measurements
    observed: Observed
    warnings: tuple[str, ...]

    @property
    def num_wrong(self) -> tuple[int, int]:
        """The numbers of the batch's own edits and of earlier ones that are not answered and were before."""
        return len(self.found.unanswered), len(self.observed.lost)


@contextmanager
def faults_as_rejections() -> Iterator[None]:
    """Raise `EditRejected` for arithmetic that fails and for memory that runs out while an update is made."""
    try:
        yield
    except (ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError) as fault:
        raise EditRejected(f"{type(fault).__name__.lstrip('_')} in the editor: {fault}", code=Code.EDITOR_FAILED) from fault


@faults_as_rejections()
def _made(
    editor: Editor,
    batch: EditBatch,
    state: EditorState,
    inspector: Inspector,
    head: int,
    before: Sequence[str | None] | None,
) -> CandidateVersion:
    """Edit, measure, and make again what is not answered, as often as it may help; take the best attempt."""
    seconds = {"edit_s": 0.0, "guard_s": 0.0}
    in_model = editor.kind not in READ_BEFORE  # What a memory changes that is read before the model is known from its records.
    cache = BatchCache.of(inspector.model, inspector.spec.names, batch) if in_model else None
    sample = inspector.earlier.next(batch) if in_model else []  # The same for all attempts, because they are compared.
    attempts: list[_Attempt] = []
    rounds: list[tuple[Edit, ...]] = []
    num_rounds = Counter[bool]()  # Of own edits, and of earlier ones.
    why = ""
    began = time.perf_counter()
    made = editor.edit(inspector.model, batch, state, cache)
    while True:
        edited = time.perf_counter()
        found, observed = inspector.measure(batch, made[0], cache, sample, if_answered=inspector.guard.strict)
        verdict = inspector.guard.check(found)
        seconds = {"edit_s": seconds["edit_s"] + edited - began, "guard_s": seconds["guard_s"] + time.perf_counter() - edited}
        if not verdict.publish:
            if not attempts:
                raise VersionRefused(verdict.breaches, {**found.to_json(), "limits": inspector.guard.limits})
            why = f"; one more time, {'; '.join(map(str, verdict.breaches))}"  # The guard refuses only the stronger one.
            break
        attempts.append(_Attempt(made, tuple(rounds), found, observed, verdict.warnings))
        again = _to_make_again(batch, attempts[-1]) if inspector.guard.strict else ()
        is_own = bool(found.unanswered)
        if not again or num_rounds[is_own] == MAX_REPEATS:
            break
        num_rounds[is_own] += 1
        began = time.perf_counter()
        try:
            made = edit_again(editor, inspector.model, EditBatch(again), made)
        except EditRejected as refused:  # Its positions are not those of the batch.
            why = f"; one more time, {refused.reason}"
            break
        rounds.append(again)
    best = _best(batch, attempts, inspector, sample, why) if inspector.guard.strict else attempts[-1]
    card = {**best.found.to_json(), "limits": inspector.guard.limits, "warnings": list(best.warnings)}
    card |= {"num_edits": len(batch), "method": "free"} | {name: round(value, 4) for name, value in seconds.items()}
    if lost := [edit.id for edit in best.observed.lost if edit.id is not None]:
        card["lost"] = lost
    if best.again:
        card |= {"repeats": len(best.again), "again": [[edit.to_json() for edit in one] for one in best.again]}
    if before is not None:
        card["answers"] = [list(pair) for pair in zip(before, answers_after(batch, best.found), strict=True)]
    return CandidateVersion(head, head, batch.edits, *best.made, card, best.observed)


def _to_make_again(batch: EditBatch, attempt: _Attempt) -> tuple[Edit, ...]:
    """Return the edits that an attempt leaves unanswered: its own or, once these are answered, earlier ones that it loses."""
    return tuple(batch.edits[i] for i in attempt.found.unanswered) or attempt.observed.lost


def _best(
    batch: EditBatch, attempts: Sequence[_Attempt], inspector: Inspector, sample: Sequence[HeldEdit], why: str
) -> _Attempt:
    """Return the attempt that leaves the fewest edits unanswered, first its own and then earlier ones.

    Raises `EditRejected` if it still leaves own ones, or if its strength loses more earlier edits than the first attempt does.
    """
    first, best = attempts[0], min(attempts, key=lambda attempt: attempt.num_wrong)
    if best.found.unanswered:
        raise ineffective(batch, best.found, len(attempts), why)
    is_costly = first.found.unanswered and best.observed.lost
    if is_costly and len(best.observed.lost) > len(inspector.lost(batch, first.made[0], sample)):
        raise ineffective(batch, first.found, 1, "; stronger, earlier edits would no longer be answered")
    return best


def answers_after(batch: EditBatch, found: Measurements) -> list[str]:
    """Return the answer to each edit, of two forms in chat: as it is wanted, or what was measured instead."""
    wrong = {i: row["answer"] for i, row in zip(found.unanswered, found.failed, strict=True)}
    return [wrong.get(i, edit.wording(edit.prompts[-1])) for i, edit in enumerate(batch)]


def ineffective(batch: EditBatch, found: Measurements, num_made: int, why: str = "") -> EditRejected:
    """Build the refusal of every edit of a batch that the model, edited `num_made` times, does not answer by its target."""
    times = (f" although the edit was made {num_made} times" if num_made > 1 else "") + why
    reason = (
        "the edited model answers {answer!r} instead of the target{times}. Word the target as the model would say it, give the "
        "subject, or set a larger step of the editor (`errata serve --set`)"
    )
    return EditRejected.of(
        Fault(i, "target", Code.INEFFECTIVE, reason.format(**row, times=times), says=row["answer"])
        for i, row in zip(found.unanswered, found.failed, strict=True)
    )
