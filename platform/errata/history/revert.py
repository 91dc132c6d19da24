"""Revert: chosen edits are taken out of the live version, as a new version.

subtract: the new version follows the live one, and its delta is that of whole versions with the sign changed. It is exact up
    to fp32 rounding for their own change. What later versions wrote on top stays, and so does the editor's state: the keys of
    the reverted edits are still protected.
downdate: the new version branches off before the first chosen edit and holds all later edits except the chosen ones, whose
    equations are solved again with the keys and targets that the ledger holds, without the model (normal_equations.py). For
    editors whose equations are additive. It is exact for the targets as they were; weights and state come near those of a
    replay, because later targets were found with the chosen edits in place.
replay: the new version branches off in the same way, and the later batches are made again on the weights that each would have
    met. Weights and state have the bits that they would have if the chosen edits had never been posted.

The model's weights change only while a revert runs. The result is a candidate for `Ledger.append`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from errata.candidate import CandidateVersion
from errata.delta.accumulator import VersionContent
from errata.delta.kinds import Delta, joined_in_series, joint, split_by_kind, stored
from errata.delta.memory_delta import between, held_again
from errata.delta.parts import Dense
from errata.delta.weight_delta import WeightDelta, chained
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.editor import Editor
from errata.editors.repeated import edit_repeatedly
from errata.editors.state import EditorState
from errata.editors.tiers import Tiers
from errata.guard.limits import Measurements, VersionRefused
from errata.guard.probe_answers import MAX_ANSWER_TOKENS
from errata.history.checkout import checked_out
from errata.history.downdate import without_edits
from errata.history.lineage import MadeBatch, live_edits, live_versions, taken_out
from errata.history.revert_context import RevertContext
from errata.history.revert_selection import RevertRefused, RevertSelection, select
from errata.ledger import Ledger, Version
from errata.model.generation import greedy_texts
from errata.model.language_model import LanguageModel

Mode = Literal["auto", "subtract", "downdate", "replay"]


@dataclass(frozen=True)
class _Draft:
    """A reverted version before it is measured.

    `batches` were made again by the editor, `delta` is relative to `parent`, `change` to the head.
    """

    mode: str
    parent: int
    batches: tuple[MadeBatch, ...]
    delta: Delta
    state: EditorState
    change: Delta
    warnings: tuple[str, ...]
    answers: tuple[Mapping[str, str], ...]


def revert(context: RevertContext, ids: Iterable[str], versions: Iterable[int], mode: str = "auto") -> CandidateVersion:
    """Make the version without the chosen edits.

    `auto` takes the first mode that is possible and that the guard accepts: `downdate`, `subtract` if whole versions are
    chosen, `replay`. The model is unchanged afterwards. Raises `RevertRefused`, and `VersionRefused` with the limits that the
    guard found passed.
    """
    if mode not in get_args(Mode):
        reason = f"{mode!r} is not a mode; use {', '.join(get_args(Mode))}"
        raise RevertRefused(reason, field="mode", code=Code.INVALID_VALUE)
    selection = select(context.ledger, context.version, ids, versions)
    if mode == "subtract" and not selection.is_whole:
        parts = ", ".join(str(v.number) for v in selection.versions if len(selection.places[v.number]) < len(v.edits))
        reason = f"only whole versions can be subtracted, and not all edits of {parts} are chosen: choose them all, or replay"
        raise RevertRefused(reason, field="mode", code=Code.PARTIAL_VERSION)
    if mode == "subtract" and selection.made_again_in:
        numbers = ", ".join(map(str, selection.made_again_in))
        reason = f"version {numbers} made these edits again, so that a difference would leave a part of them: replay instead"
        raise RevertRefused(reason, field="mode", code=Code.PARTIAL_VERSION)
    *others, last = [_DRAFTS[mode]] if mode != "auto" else _possible(context, selection)
    notes: list[str] = []
    for draft_of in others:
        try:
            return _candidate(context, selection, draft_of, notes)
        except VersionRefused:
            continue
        except RevertRefused as refusal:
            if refusal.code is not Code.NOT_ADDITIVE:
                raise
            notes.append(f"not taken out of the equations: {refusal.reason}")
    return _candidate(context, selection, last, notes)


def _possible(context: RevertContext, selection: RevertSelection) -> list[_DraftOf]:
    """Return the modes that may take the edits out, the best first."""
    is_additive = context.editor.normal_equations(context.inspector.model) is not None
    is_whole = selection.is_whole and not selection.made_again_in
    return [*([_downdate] if is_additive else []), *([_subtract] if is_whole else []), _replay]


def _candidate(
    context: RevertContext, selection: RevertSelection, draft_of: _DraftOf, notes: Sequence[str] = ()
) -> CandidateVersion:
    """Draft the version and measure it; `notes` become warnings of it. Raises `VersionRefused`."""
    began = time.perf_counter()
    draft = draft_of(context, selection)
    edited = time.perf_counter()
    found = _measured(context, selection, draft.change)
    verdict = context.inspector.guard.check(found)
    if not verdict.publish:
        raise VersionRefused(verdict.breaches, found.to_json())
    edits = tuple(edit for batch in draft.batches for edit in batch.edits)
    seconds = {"edit_s": round(edited - began, 4), "guard_s": round(time.perf_counter() - edited, 4)}
    card = {
        **found.to_json(),
        "warnings": [*notes, *draft.warnings, *verdict.warnings],
        "num_edits": len(edits),
        "method": "free",
    }
    card |= seconds | _effect(selection, draft, context.version)
    return CandidateVersion(draft.parent, context.version, edits, draft.delta, draft.state, card, change=draft.change)


def _effect(selection: RevertSelection, draft: _Draft, head: int) -> dict[str, Any]:
    """Return the scorecard's fields about the revert itself; `lineage` and `ancestry` read `reverted`."""
    ids = [edit.id for edit in selection.edits if edit.id is not None]
    reverted = {"edits": ids, "versions": [version.number for version in selection.versions], "mode": draft.mode}
    if draft.mode != "subtract":
        reverted["head"] = head
        reverted["batches"] = [len(batch.edits) for batch in draft.batches]
        if any(batch.again or batch.moved for batch in draft.batches):
            reverted["again"] = [batch.again_to_json() for batch in draft.batches]
        if any(batch.moved for batch in draft.batches):
            reverted["moved"] = [None if batch.moved is None else batch.moved.to_json() for batch in draft.batches]
    num_back = sum(row["says"] == row["was"] for row in draft.answers)
    rows = [dict(row) for row in draft.answers]
    return {"reverted": reverted, "reverted_answers": rows, "went_back": num_back / len(rows)}


def _measured(context: RevertContext, selection: RevertSelection, change: Delta) -> Measurements:
    """Measure the head with `change`. Retention is measured on a sample of the edits that stay."""
    gone = {version.number: selection.places[version.number] for version in selection.versions}
    live = live_versions(context.ledger, context.version)
    stay = [e for v in live for i, e in enumerate(v.edits) if i not in gone.get(v.number, ())]
    context.inspector.at_version(stay)
    try:
        return context.inspector.measure(EditBatch(()), change)[0]
    finally:
        context.inspector.at_version(live_edits(context.ledger, context.version))


def _subtract(context: RevertContext, selection: RevertSelection) -> _Draft:
    delta = _without(context, selection)
    said, was = _answers_so_far(context, selection)
    with checked_out(context.edited, context.ledger, context.version):
        context.edited.add(delta)
        says = _say(context, selection.asked)
    state = context.ledger.state(context.version)
    assert state is not None, "version 0 holds no edits to select"
    return _Draft("subtract", context.version, (), delta, state, delta, (), _rows(selection, was, said, says))


def _without(context: RevertContext, selection: RevertSelection) -> Delta:
    """Return the change that takes whole versions out: the sum of theirs with the sign changed.

    A memory becomes that of the versions that stay, so that what the selected ones replaced is there again.
    """
    weights, memory = split_by_kind([context.ledger.delta(version.number) for version in selection.versions])
    out = chained([one.scaled(-1.0) for one in weights]).folded()
    if not memory:
        return stored(out)
    gone = {version.number for version in selection.versions}
    stay = [v.number for v in live_versions(context.ledger, context.version) if v.number not in gone]
    _, kept = split_by_kind([context.ledger.delta(number) for number in stay])
    change = between(context.edited.content().bank, held_again(kept))
    return stored(joint(out, change))


def _replay(context: RevertContext, selection: RevertSelection) -> _Draft:
    """Make the later batches again. Raises `RevertRefused` if another editor made one, or the editor now refuses one."""
    parent, later = _branch(context, selection)
    warnings = _check_origins(context, [version for version in later if selection.without(version)], parent)
    left = [(version.number, batch) for version in later for batch in selection.without(version)]
    (said, was), at_head, deltas = _answers_so_far(context, selection), context.edited.content(), []
    with checked_out(context.edited, context.ledger, context.version) as checkout:
        checkout.to(parent)
        state = context.ledger.state(parent) or context.editor.start(context.inspector.model, context.inspector.spec)
        for number, batch in left:
            delta, state = _edit_again(context, batch, state, number)
            context.edited.add(delta)
            deltas.append(delta)
        change = _change_between(at_head, context.edited.content())
        says = _say(context, selection.asked)
    batches = tuple(batch for _, batch in left)
    return _Draft(
        "replay", parent, batches, joined_in_series(deltas), state, change, warnings, _rows(selection, was, said, says)
    )


def _downdate(context: RevertContext, selection: RevertSelection) -> _Draft:
    """Solve the later batches again for the edits that stay. Raises `RevertRefused` if the ledger holds too little for it."""
    parent, later = _branch(context, selection)
    (said, was), at_head = _answers_so_far(context, selection), context.edited.content()
    with checked_out(context.edited, context.ledger, context.version) as checkout:
        checkout.to(parent)
        try:
            batches, deltas, state = without_edits(context, selection, parent, later)
        except (EditRejected, torch.linalg.LinAlgError) as fault:
            reason = fault.reason if isinstance(fault, EditRejected) else str(fault)
            raise RevertRefused(reason, code=Code.NOT_ADDITIVE) from fault
        for delta in deltas:
            context.edited.add(delta)
        change = _change_between(at_head, context.edited.content())
        says = _say(context, selection.asked)
    rows = _rows(selection, was, said, says)
    return _Draft("downdate", parent, batches, joined_in_series(deltas), state, change, (), rows)


def _branch(context: RevertContext, selection: RevertSelection) -> tuple[int, list[Version]]:
    """Return the version to branch off from, and the live versions after it.

    What an earlier revert subtracted must not come back: if the branch lies between its versions and that revert, the branch
    moves before them.
    """
    chain, first = context.ledger.chain(context.version), min(version.number for version in selection.versions)
    while (earliest := min(_subtracted_after(context.ledger, chain, first), default=first)) < first:
        first = earliest
    later = [version for version in live_versions(context.ledger, context.version) if version.number >= first]
    return context.ledger.version(first).parent or 0, later


def _subtracted_after(ledger: Ledger, chain: Sequence[int], first: int) -> Iterator[int]:
    for number in chain:
        if number >= first:
            yield from taken_out(ledger.version(number))


def _check_origins(context: RevertContext, later: Sequence[Version], parent: int) -> tuple[str, ...]:
    """Return a warning if another plan made a version. Raises `RevertRefused` if another editor did."""
    editor, plan = context.origin
    versions = [*later, *([context.ledger.version(parent)] if parent else [])]
    if others := [version for version in versions if version.editor != editor]:
        named = ", ".join(f"version {version.number} by {version.editor}" for version in others)
        raise RevertRefused(
            f"the edits cannot be replayed by {editor}, because another editor made {named}", code=Code.NOT_REPLAYABLE
        )
    numbers = [str(version.number) for version in later if version.plan != plan]
    if not numbers:
        return ()
    return (f"versions {', '.join(numbers)} were made with another artifact than {plan or 'none'}",)


def _edit_again(context: RevertContext, batch: MadeBatch, state: EditorState, number: int) -> tuple[Delta, EditorState]:
    """Edit a batch, and return the delta with the bits that the ledger would give back."""
    where = f"the other edits of version {number} cannot be made again"
    try:
        delta, after = _made_again(context.editor, context.inspector.model, batch, state)
    except (EditRejected, ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError) as fault:
        raise RevertRefused(f"{where}: {fault}", code=Code.NOT_REPLAYABLE) from fault
    if not delta.is_finite:
        raise RevertRefused(f"{where}: the change is not finite", code=Code.NOT_FINITE)
    return stored(delta), after


def _made_again(editor: Editor, model: LanguageModel, batch: MadeBatch, state: EditorState) -> tuple[Delta, EditorState]:
    if batch.moved is None or not isinstance(editor, Tiers):
        made, *again = map(EditBatch, (batch.edits, *batch.again))
        return edit_repeatedly(editor, model, made, state, again)
    change = editor.leaving(model, batch.moved.gone, batch.moved.back, state)
    return editor.consolidate(model, [EditBatch(made) for made in batch.again], state, change)


def _change_between(before: VersionContent, after: VersionContent) -> Delta:
    """Return the change of the model from the content of one version to that of another."""
    names = [*before.sums, *(name for name in after.sums if name not in before.sums)]
    changes = {n: after.sums[n] if n in after.sums else torch.zeros_like(before.sums[n]) for n in names}
    memory = between(before.bank, after.bank)
    if memory is not None:  # Most changes of a memory leave the weights beside it as they are.
        changes = {n: new for n, new in changes.items() if not torch.equal(new, before.sums.get(n, torch.zeros_like(new)))}
    weights = {n: Dense(new - before.sums[n] if n in before.sums else new) for n, new in changes.items()}
    return joint(WeightDelta(weights), memory)


def _answers_so_far(context: RevertContext, selection: RevertSelection) -> tuple[list[str], list[str]]:
    """Return the answers of the head to the selected prompts, and those of the version before each edit."""
    said, asked = _say(context, selection.asked), selection.asked
    was: list[str] = []
    with checked_out(context.edited, context.ledger, context.version) as checkout:
        for version in selection.versions:
            own = asked[len(was) : len(was) + len(selection.places[version.number])]
            if own:
                checkout.to(version.parent or 0)
                was += _say(context, own)
    return said, was


def _say(context: RevertContext, edits: Sequence[Edit]) -> list[str]:
    prompts = [edit.prompts[0] for edit in edits]
    texts = greedy_texts(context.inspector.model, prompts, MAX_ANSWER_TOKENS, fit_context=True)
    return [text.strip() for text in texts]


def _rows(
    selection: RevertSelection, was: Sequence[str], said: Sequence[str], says: Sequence[str]
) -> tuple[dict[str, str], ...]:
    """Tabulate the answers before an edit was made, at the head, and at the new version."""
    asked = zip(selection.asked, was, said, says, strict=True)
    return tuple({"prompt": e.prompt, "target": e.target, "was": w, "said": before, "says": now} for e, w, before, now in asked)


_DraftOf = Callable[[RevertContext, RevertSelection], _Draft]
_DRAFTS: Mapping[str, _DraftOf] = {"subtract": _subtract, "downdate": _downdate, "replay": _replay}
