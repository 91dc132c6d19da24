"""Chosen edits taken out of the live version, as a new version.

subtract: the new version follows the live one, and its delta is that of whole versions with the sign changed. Exact up to
    fp32 rounding for their own change; what later versions wrote on top of it stays as it was written, and so does the
    editor's state: the keys of what was taken out go on being protected.
replay: the new version branches off before the first chosen edit, and holds all later edits but the chosen ones, made again
    batch by batch on the weights that each would have met. Weights and state have the bits that they would have if the chosen
    edits had never been posted.

Nothing is changed here but, for a while, the weights of the model; what is returned is for `Ledger.append`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from errata.candidate import CandidateVersion
from errata.delta.accumulator import EditedModel
from errata.delta.parts import Dense
from errata.delta.weight_delta import WeightDelta, chained, in_series
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.guard.inspector import Inspector
from errata.guard.limits import Measurements, VersionRefused
from errata.guard.probe_answers import MAX_ANSWER_TOKENS
from errata.history.checkout import checked_out
from errata.history.lineage import live_edits, live_versions, taken_out
from errata.history.revert_selection import RevertRefused, RevertSelection, select
from errata.ledger import Ledger, Version
from errata.model.generation import greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec

Mode = Literal["auto", "subtract", "replay"]


@dataclass(frozen=True)
class RevertContext:
    """What a revert is made with: a model whose weights are `head`'s, the editor with its state there, and the guard.

    `editor_name` and `plan` are as the ledger's versions have them.
    """

    ledger: Ledger
    head: int
    model: LanguageModel
    spec: ModelSpec
    edited: EditedModel
    editor: Editor
    editor_name: str
    plan: str
    state: EditorState
    inspector: Inspector


@dataclass(frozen=True)
class _Draft:
    """A version as it was made, not yet measured: what it adds to `parent`, what it changes of the head, what it answers."""

    mode: str
    parent: int
    batches: tuple[tuple[Edit, ...], ...]  # that the editor has made again
    delta: WeightDelta
    state: EditorState
    change: WeightDelta
    warnings: tuple[str, ...]
    answers: tuple[Mapping[str, str], ...]


def revert(bench: RevertContext, ids: Iterable[str], versions: Iterable[int], mode: str = "auto") -> CandidateVersion:
    """The version without the chosen edits; `auto` subtracts where whole versions are chosen and the guard agrees.

    The model is as it was afterwards, whatever is raised: `RevertRefused`, `VersionRefused` with the guard's reasons.
    """
    if mode not in get_args(Mode):
        raise RevertRefused(
            f"{mode!r} is no mode; there are {', '.join(get_args(Mode))}", field="mode", code=Code.INVALID_VALUE
        )
    out = select(bench.ledger, bench.head, ids, versions)
    if mode == "subtract" and not out.is_whole:
        parts = ", ".join(str(v.number) for v in out.versions if len(out.places[v.number]) < len(v.edits))
        why = f"only whole versions can be subtracted, and not all edits of {parts} are chosen: choose them all, or replay"
        raise RevertRefused(why, field="mode", code=Code.PARTIAL_VERSION)
    if mode == "subtract" or (mode == "auto" and out.is_whole):
        try:
            return _made(bench, out, _subtract)
        except VersionRefused:
            if mode == "subtract":
                raise
    return _made(bench, out, _replay)


def _made(
    bench: RevertContext, out: RevertSelection, how: Callable[[RevertContext, RevertSelection], _Draft]
) -> CandidateVersion:
    """Raises `VersionRefused`."""
    began = time.perf_counter()
    draft = how(bench, out)
    edited = time.perf_counter()
    found = _measured(bench, out, draft.change)
    verdict = bench.inspector.guard.check(found)
    if not verdict.publish:
        raise VersionRefused(verdict.breaches, found.to_json())
    edits = tuple(edit for batch in draft.batches for edit in batch)
    seconds = {"edit_s": round(edited - began, 4), "guard_s": round(time.perf_counter() - edited, 4)}
    card = {**found.to_json(), "warnings": [*draft.warnings, *verdict.warnings], "num_edits": len(edits), "method": "free"}
    card |= seconds | _effect(out, draft)
    return CandidateVersion(draft.parent, bench.head, edits, draft.delta, draft.state, card)


def _effect(out: RevertSelection, draft: _Draft) -> dict[str, Any]:
    """What the scorecard says of the revert itself; `lineage` reads `reverted`."""
    ids = [edit.id for edit in out.edits if edit.id is not None]
    reverted = {"edits": ids, "versions": [version.number for version in out.versions], "mode": draft.mode}
    if draft.mode == "replay":
        reverted["batches"] = [len(batch) for batch in draft.batches]
    num_back = sum(row["says"] == row["was"] for row in draft.answers)
    rows = [dict(row) for row in draft.answers]
    return {"reverted": reverted, "reverted_answers": rows, "went_back": num_back / len(rows)}


def _measured(bench: RevertContext, out: RevertSelection, change: WeightDelta) -> Measurements:
    """With the change of the head: what is retained is asked of a sample of the edits that stay."""
    gone = {version.number: out.places[version.number] for version in out.versions}
    live = live_versions(bench.ledger, bench.head)
    stay = [e for v in live for i, e in enumerate(v.edits) if i not in gone.get(v.number, ())]
    bench.inspector.at_version(stay)
    try:
        return bench.inspector.measure(EditBatch(()), change)[0]
    finally:
        bench.inspector.at_version(live_edits(bench.ledger, bench.head))


def _subtract(bench: RevertContext, out: RevertSelection) -> _Draft:
    deltas = [bench.ledger.delta(version.number).scaled(-1.0) for version in out.versions]
    delta = WeightDelta.from_tensors(chained(deltas).folded().to_tensors())
    said, was = _answers_so_far(bench, out)
    with checked_out(bench.edited, bench.ledger, bench.head):
        bench.edited.add(delta)
        says = _say(bench, out.asked)
    return _Draft("subtract", bench.head, (), delta, bench.state, delta, (), _rows(out, was, said, says))


def _replay(bench: RevertContext, out: RevertSelection) -> _Draft:
    """Raises `RevertRefused` if a batch was made by another editor, or is refused by this one without what was chosen."""
    parent, tail = _branch(bench, out)
    warnings = _check_makers(bench, [version for version in tail if out.without(version)], parent)
    left = [(version.number, batch) for version in tail for batch in out.without(version)]
    (said, was), at_head, deltas = _answers_so_far(bench, out), bench.edited.sums(), []
    with checked_out(bench.edited, bench.ledger, bench.head) as walk:
        walk.go(parent)
        state = bench.ledger.state(parent) or bench.editor.start(bench.model, bench.spec)
        for number, batch in left:
            delta, state = _edit_again(bench, batch, state, number)
            bench.edited.add(delta)
            deltas.append(delta)
        change = _between(at_head, bench.edited.sums())
        says = _say(bench, out.asked)
    again = tuple(batch for _, batch in left)
    return _Draft("replay", parent, again, in_series(deltas), state, change, warnings, _rows(out, was, said, says))


def _branch(bench: RevertContext, out: RevertSelection) -> tuple[int, list[Version]]:
    """The version to branch off from, and the live ones after it.

    What an earlier revert subtracted must not come back: if its versions are before the branch and it is after, the branch
    moves before them.
    """
    chain, first = bench.ledger.chain(bench.head), min(version.number for version in out.versions)
    while (earliest := min(_subtracted_after(bench.ledger, chain, first), default=first)) < first:
        first = earliest
    tail = [version for version in live_versions(bench.ledger, bench.head) if version.number >= first]
    return bench.ledger.version(first).parent or 0, tail


def _subtracted_after(ledger: Ledger, chain: Sequence[int], first: int) -> Iterator[int]:
    for number in chain:
        if number >= first:
            yield from taken_out(ledger.version(number))


def _check_makers(bench: RevertContext, tail: Sequence[Version], parent: int) -> tuple[str, ...]:
    """A warning where the plan is another. Raises `RevertRefused` where the editor is."""
    makers = [*tail, *([bench.ledger.version(parent)] if parent else [])]
    if others := [version for version in makers if version.editor != bench.editor_name]:
        named = ", ".join(f"version {version.number} by {version.editor}" for version in others)
        raise RevertRefused(
            f"it cannot be replayed by {bench.editor_name}, since others were made otherwise: {named}", code=Code.NOT_REPLAYABLE
        )
    numbers = [str(version.number) for version in tail if version.plan != bench.plan]
    if not numbers:
        return ()
    return (f"versions {', '.join(numbers)} were made with another artifact than {bench.plan or 'none'}",)


def _edit_again(
    bench: RevertContext, batch: tuple[Edit, ...], state: EditorState, number: int
) -> tuple[WeightDelta, EditorState]:
    """As the ledger would give it back."""
    where = f"what stays of version {number} cannot be made again"
    try:
        delta, after = bench.editor.edit(bench.model, EditBatch(batch), state)
    except (EditRejected, ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError) as fault:
        raise RevertRefused(f"{where}: {fault}", code=Code.NOT_REPLAYABLE) from fault
    if not delta.is_finite:
        raise RevertRefused(f"{where}: the change is not finite", code=Code.NOT_FINITE)
    return WeightDelta.from_tensors(delta.to_tensors()), after


def _between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> WeightDelta:
    """The change of the weights from one set of sums to another."""
    names = [*before, *(name for name in after if name not in before)]
    changes = {name: after[name] if name in after else torch.zeros_like(before[name]) for name in names}
    return WeightDelta({n: Dense(change - before[n] if n in before else change) for n, change in changes.items()})


def _answers_so_far(bench: RevertContext, out: RevertSelection) -> tuple[list[str], list[str]]:
    """What the head says to the prompts that are asked, and what the version before each edit said."""
    said, asked = _say(bench, out.asked), out.asked
    was: list[str] = []
    with checked_out(bench.edited, bench.ledger, bench.head) as walk:
        for version in out.versions:
            own = asked[len(was) : len(was) + len(out.places[version.number])]
            if own:
                walk.go(version.parent or 0)
                was += _say(bench, own)
    return said, was


def _say(bench: RevertContext, edits: Sequence[Edit]) -> list[str]:
    texts = greedy_texts(bench.model, [edit.prompt for edit in edits], MAX_ANSWER_TOKENS, fit_context=True)
    return [text.strip() for text in texts]


def _rows(out: RevertSelection, was: Sequence[str], said: Sequence[str], says: Sequence[str]) -> tuple[dict[str, str], ...]:
    """What the version before an edit said, what the head said, and what the new version says."""
    asked = zip(out.asked, was, said, says, strict=True)
    return tuple({"prompt": e.prompt, "target": e.target, "was": w, "said": before, "says": now} for e, w, before, now in asked)
