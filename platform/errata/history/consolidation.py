"""Consolidation: the weights learn edits that the memory holds, and what they then answer by themselves leaves the memory.

    a copy of the model -> answers without the memory -> step of the weights -> guard -> answers without the memory -> version

The step is made and measured on a copy, while further edits go into the memory. It fits every version that has the copy's
weights: `published` makes it a candidate for the head of that moment, and drops only the records that are still there. No
edit is ever without both: one that the weights do not answer stays in the memory, and one of an earlier consolidation that
they would lose goes back into it, in the same version.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from errata.candidate import MAX_REPEATS, CandidateVersion, faults_as_rejections, ineffective
from errata.delta.kinds import joint, weights_alone
from errata.delta.memory_delta import MemoryDelta
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.edit_memory.bank import SAID, Bank
from errata.edit_memory.hooks import bank_of, reading
from errata.editors.repeated import edit_again
from errata.editors.state import EditorState
from errata.editors.tiers import Tiers, is_in_memory, joined, records_of, split, without_memory
from errata.guard.held_edits import HeldEdit
from errata.guard.inspector import Inspector, Observed
from errata.guard.limits import Measurements, VersionRefused
from errata.history.lineage import Moved
from errata.ledger import Ledger
from errata.model.composing import composed
from errata.model.prefix_cache import BatchCache

NUM_ATTEMPTS = 2  # Of the weights: with all edits, and with those alone that they then answer.


@dataclass(frozen=True)
class Consolidated:
    """A step of the weights that passed the guard, made at version `parent` and in no version yet.

    `rounds` are the edits in the words in which the weights learn them; `answered` are the ids of those that may leave the
    memory, and `back` are earlier edits that the weights would lose. `state` is that of the weights' editor after the step.
    """

    parent: int
    rounds: tuple[tuple[Edit, ...], ...]
    answered: tuple[str, ...]
    back: tuple[Edit, ...]
    delta: WeightDelta
    state: EditorState
    scorecard: dict[str, Any]
    observed: Observed


@dataclass(frozen=True)
class _Step:
    """A step of the weights for a batch, which the guard lets pass; `found` says which of the batch it leaves unanswered."""

    batch: EditBatch
    rounds: tuple[EditBatch, ...]
    delta: WeightDelta
    state: EditorState
    found: Measurements

    @property
    def unanswered(self) -> tuple[Edit, ...]:
        return tuple(self.batch.edits[i] for i in self.found.unanswered)

    @property
    def answered(self) -> tuple[Edit, ...]:
        return tuple(edit for i, edit in enumerate(self.batch) if i not in self.found.unanswered)


@faults_as_rejections()
def consolidate(tiers: Tiers, edits: Sequence[Edit], state: EditorState, inspector: Inspector, head: int) -> Consolidated:
    """Make the step of the weights for edits of the memory, on the inspector's model, which is at version `head`.

    The model is unchanged afterwards. Raises `VersionRefused` from the guard, and `EditRejected` from the editor and if the
    weights would answer none of the edits.
    """
    begin, bank = time.perf_counter(), bank_of(inspector.model.module)
    assert bank is not None, "edits are moved out of a memory"
    names = {edit.id for edit in edits if edit.id is not None}
    # What the memory says itself does not depend on the weights; other memories are read with them.
    is_said = bank.kind in SAID
    rest = Bank(bank.kind, bank.site) if is_said else bank.changed((), [record.fact for record in records_of(bank, names)])
    with reading(inspector.model.module, rest):
        known, new = _without_memory_now(inspector, EditBatch(tuple(edits)))
        step = _step(tiers, new, state, inspector) if new else None
        if not known and (step is None or not step.answered):
            assert step is not None
            raise ineffective(step.batch, step.found, len(step.rounds))
        if step is None or not step.answered:
            return _moved_alone(head, known, split(state)[0])
        earlier = [held for held in inspector.earlier.others(EditBatch(tuple(edits))) if not _is_said(held, bank)]
        found, observed = inspector.measure(step.batch, step.delta, None, earlier)
    verdict = inspector.guard.check(replace(found, efficacy=None))
    if not verdict.publish:
        raise VersionRefused(verdict.breaches, found.to_json())
    if any(is_in_memory(edit, bank) for edit in observed.lost):
        why = "an edit of the memory would no longer be followed"
        raise EditRejected(why, code=Code.INEFFECTIVE)
    said = {edit: one for edit, one in observed.said.items() if edit not in observed.lost}
    card = {**found.to_json(), "limits": inspector.guard.limits, "warnings": list(verdict.warnings), "num_edits": 0}
    card |= {"method": "free", "edit_s": round(time.perf_counter() - begin, 4)}
    return Consolidated(
        head,
        tuple(one.edits for one in step.rounds),
        tuple(edit.id for edit in (*known, *step.answered) if edit.id is not None),
        observed.lost,
        step.delta,
        step.state,
        card,
        Observed(said, None),
    )


def _is_said(held: HeldEdit, bank: Bank) -> bool:
    """Say if a memory answers an edit itself, whatever the weights are."""
    return bank.kind in SAID and is_in_memory(held.edit, bank)


def _moved_alone(head: int, known: Iterable[Edit], of_weights: EditorState) -> Consolidated:
    """Return the consolidation of edits that the weights answer already, without a step."""
    ids = tuple(edit.id for edit in known if edit.id is not None)
    return Consolidated(head, (), ids, (), WeightDelta({}), of_weights, {"warnings": [], "num_edits": 0}, Observed({}, None))


def _without_memory_now(inspector: Inspector, batch: EditBatch) -> tuple[list[Edit], list[Edit]]:
    """Return the edits that the weights answer by now, and the others in the words in which the model would say them."""
    found, _ = inspector.measure(batch, WeightDelta({}), sample=[])
    known = [edit for i, edit in enumerate(batch) if i not in found.unanswered]
    others = [batch.edits[i] for i in found.unanswered]
    if not others:
        return known, []
    return known, composed(inspector.model, others, [texts[-1] for texts in inspector.answers(EditBatch(tuple(others)))])


def _step(tiers: Tiers, edits: Sequence[Edit], state: EditorState, inspector: Inspector) -> _Step:
    """Make the step of all edits; if some stay unanswered, that of the others alone, so that the weights learn no more."""
    step = _best_step(tiers, EditBatch(tuple(edits)), state, inspector)
    for _ in range(NUM_ATTEMPTS - 1):
        if not step.unanswered or not step.answered:
            break
        step = _best_step(tiers, EditBatch(step.answered), state, inspector)
    return step


def _best_step(tiers: Tiers, batch: EditBatch, state: EditorState, inspector: Inspector) -> _Step:
    """Make the step of a batch, and again what is not answered; of what the guard lets pass, return what answers most.

    Raises `EditRejected` from the editor, and `VersionRefused` if the guard refuses the first attempt.
    """
    model, best = inspector.model, None
    cache = BatchCache.of(model, inspector.spec.names, batch)
    with without_memory(model):
        made = tiers.weights.edit(model, batch, split(state)[0], cache)
    rounds = [batch]
    while True:
        delta = weights_alone(made[0], "a tier")
        found, _ = inspector.measure(batch, delta, cache, sample=[])
        verdict = inspector.guard.check(replace(found, efficacy=None))
        if not verdict.publish:
            if best is None:
                raise VersionRefused(verdict.breaches, found.to_json())
            return best
        if best is None or len(found.unanswered) < len(best.found.unanswered):
            best = _Step(batch, tuple(rounds), delta, made[1], found)
        if not found.unanswered or len(rounds) > MAX_REPEATS:
            return best
        again = EditBatch(tuple(batch.edits[i] for i in found.unanswered))
        try:
            with without_memory(model):
                made = edit_again(tiers.weights, model, again, made)
        except EditRejected:  # The best attempt so far counts.
            return best
        rounds.append(again)


def published(
    made: Consolidated, tiers: Tiers, state: EditorState, inspector: Inspector, ledger: Ledger, head: int
) -> CandidateVersion | None:
    """Return the candidate that follows the live version `head`, at which the inspector's model and `state` are.

    None if the weights have changed since it was made, or if no record is left to drop. An edit stays in the memory if a record
    of another edit would decide at its question.
    """
    if not has_weights_of(ledger, made.parent, head):
        return None
    held = inspector.earlier.held.by_id
    gone = _not_decided([held[id].edit for id in made.answered if id in held], inspector)
    if not gone:
        return None
    back = tuple(edit for edit in made.back if edit in inspector.earlier.held.by_edit)
    change = tiers.leaving(inspector.model, gone, back, state)
    moved = Moved(gone, back)
    card = {**made.scorecard, "consolidated": moved.to_json(), "again": [[e.to_json() for e in one] for one in made.rounds]}
    after = joined(made.state, split(state)[1])
    return CandidateVersion(head, head, (), joint(made.delta, change), after, card, made.observed)


def has_weights_of(ledger: Ledger, version: int, head: int) -> bool:
    """Say if `head` has the weights of an earlier version, from which only changes of a memory lead to it."""
    chain = [0, *ledger.chain(head)]
    if version not in chain:
        return False
    return all(isinstance(ledger.delta(number), MemoryDelta) for number in chain[chain.index(version) + 1 :])


def _not_decided(edits: Sequence[Edit], inspector: Inspector) -> tuple[str, ...]:
    """Return the edits whose records the bank has and at whose prompts, without these, no other record decides."""
    bank = bank_of(inspector.model.module)
    names = {edit.id for edit in edits if edit.id is not None}
    own = {record.edit: record.fact for record in records_of(bank, names)}
    leaving = [edit for edit in edits if edit.id in own]
    while leaving and bank is not None:
        facts = [record.fact for record in records_of(bank, {edit.id for edit in leaving if edit.id is not None})]
        rest = bank.changed((), facts)
        stay = [edit for edit in leaving if any(inspector.memory.decider(rest, prompt) is not None for prompt in edit.prompts)]
        if not stay:
            break
        leaving = [edit for edit in leaving if edit not in stay]
    return tuple(edit.id for edit in leaving if edit.id is not None)
