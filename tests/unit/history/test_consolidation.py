"""Consolidation on a small model: from the memory into the weights, and back by every way that a version has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from errata.delta.joint_delta import JointDelta
from errata.delta.memory_delta import MemoryDelta
from errata.edit import Code, Edit, EditRejected
from errata.edit_memory.hooks import bank_of
from errata.editors.tiers import Tiers, is_in_memory, split
from errata.guard.inspector_copy import inspector_of_copy
from errata.guard.limits import VersionRefused
from errata.history.consolidation import Consolidated, consolidate, has_weights_of, published
from errata.history.lineage import Moved, batches, live_edits
from errata.history.revert_selection import RevertRefused
from serving.worker.live_model import LiveModel, LiveModelOptions
from tests.unit.history.test_revert import EDITS, MATRIX, Exact

A, B, C, D, E, _ = EDITS


@dataclass(frozen=True)
class Picky(Exact):
    """An editor that writes another word than the target of an edit whose subject is that of `B`."""

    def edit(self, model, batch, state, cache=None):
        edits = tuple(replace(edit, target=A.target, answer=None) if edit.subject == B.subject else edit for edit in batch)
        return super().edit(model, type(batch)(edits), state)


def tiers_at(checkpoint: Path, ledger: Path, editor: str = "tests.unit.history.test_revert:Exact") -> LiveModel:
    options = LiveModelOptions(str(checkpoint), str(ledger), editor, guard={"change.refuse": "1e9"}, memory="answer")
    live_model = LiveModel(options)
    live_model.model.tokenizer.eos_token = None  # The model ends no answer.
    return live_model


@pytest.fixture
def live_model(checkpoint: Path, tmp_path: Path) -> LiveModel:
    return tiers_at(checkpoint, tmp_path / "ledger")


def post(live_model: LiveModel, *groups: tuple[Edit, ...]) -> None:
    for group in groups:
        live_model.append(live_model.make(group))


def step_for(live_model: LiveModel, *edits: Edit) -> Consolidated:
    _, model = live_model.copied()
    assert isinstance(live_model.editor, Tiers)
    inspector = inspector_of_copy(live_model.inspector, model)
    return consolidate(live_model.editor, edits, live_model.state, inspector, live_model.version)


def publish(live_model: LiveModel, made: Consolidated) -> int | None:
    assert isinstance(live_model.editor, Tiers)
    live = live_model
    candidate = published(made, live.editor, live.state, live.inspector, live.ledger, live.version)  # type: ignore[arg-type]
    return None if candidate is None else live_model.append(candidate).number


def carried(live_model: LiveModel) -> dict[str, str]:
    bank = bank_of(live_model.model.module)
    return {edit.id or "": "memory" if is_in_memory(edit, bank) else "weights" for edit in live_edits_of(live_model)}


def live_edits_of(live_model: LiveModel) -> list[Edit]:
    return [held.edit for held in live_model.inspector.earlier.held]


def check_answers(live_model: LiveModel, *edits: Edit) -> None:
    """Every edit is answered by the model as it is served: by its memory, or without it by its weights."""
    for edit in edits:
        ((text,),) = live_model.answers([edit])
        assert text.startswith(edit.target), (edit.prompt, text)


def weight(live_model: LiveModel) -> torch.Tensor:
    return live_model.model.module.get_submodule(MATRIX).weight.clone()  # type: ignore[operator, return-value]


def check_is_at_head(live_model: LiveModel) -> None:
    """Compare the live model with one after a restart: weights, memory, state and held edits."""
    other = LiveModel(live_model.options)
    assert other.version == live_model.version == live_model.ledger.head and torch.equal(weight(live_model), weight(other))
    mine, theirs = (bank_of(one.model.module) for one in (live_model, other))
    assert (mine and list(mine.records)) == (theirs and list(theirs.records))
    ours = live_model.state.tensors
    assert all(torch.equal(tensor, ours[name]) for name, tensor in other.state.tensors.items())
    assert live_edits_of(live_model) == live_edits_of(other) and carried(live_model) == carried(other)


def test_the_weights_learn_edits_and_the_memory_drops_them_in_one_version(live_model: LiveModel) -> None:
    post(live_model, (A, B), (C,))
    before = weight(live_model)
    assert isinstance(live_model.ledger.delta(2), MemoryDelta) and live_model.carried_counts == {"memory": 3, "weights": 0}
    made = step_for(live_model, A, B)
    assert made.answered == ("e0", "e5") and torch.equal(weight(live_model), before), "it is made on a copy"
    assert publish(live_model, made) == 3
    delta, version = live_model.ledger.delta(3), live_model.ledger.version(3)
    assert isinstance(delta, JointDelta) and len(delta.memory.dropped) == 2 and version.edits == ()
    assert version.scorecard["consolidated"] == {"edits": ["e0", "e5"], "back": []}
    assert [(one.again, one.moved) for one in batches(version)] == [(((A, B),), Moved(("e0", "e5")))]
    assert carried(live_model) == {"e0": "weights", "e5": "weights", "e10": "memory"}
    assert live_model.carried_counts == {"memory": 1, "weights": 2} and not torch.equal(weight(live_model), before)
    check_answers(live_model, A, B, C)
    while live_model.look(16):
        pass
    assert live_model.held_counts["lost"] == 0 and live_model.answered("e0") == {"answered": True}
    check_is_at_head(live_model)


def test_edits_that_come_meanwhile_stay_and_a_step_of_other_weights_is_outdated(live_model: LiveModel) -> None:
    post(live_model, (A, B))
    made, late = step_for(live_model, A, B), step_for(live_model, A)
    again = replace(B, target=D.target, id="again")
    post(live_model, (C,), (again,))
    assert publish(live_model, made) == 4
    assert carried(live_model) == {"e0": "weights", "e10": "memory", "again": "memory"}, "a correction of B came meanwhile"
    check_answers(live_model, A, C, again)
    assert not has_weights_of(live_model.ledger, 1, 4) and has_weights_of(live_model.ledger, 1, 3)
    assert publish(live_model, late) is None, "the weights are others"
    check_is_at_head(live_model)


def test_a_correction_of_what_the_weights_know_wins_and_is_learnt_in_turn(live_model: LiveModel) -> None:
    post(live_model, (A,))
    assert publish(live_model, step_for(live_model, A)) == 2
    other = replace(A, target=B.target, id="other")
    post(live_model, (other,))
    check_answers(live_model, other)
    assert publish(live_model, step_for(live_model, other)) == 4 and carried(live_model) == {"other": "weights"}
    check_answers(live_model, other)
    back = replace(A, id="back")
    post(live_model, (back,))
    check_answers(live_model, back)
    live_model.move_to(4)
    check_answers(live_model, other)
    live_model.move_to(1)
    assert carried(live_model) == {"e0": "memory"}
    check_answers(live_model, A)
    check_is_at_head(live_model)


def test_what_the_weights_answer_already_leaves_the_memory_without_a_step(live_model: LiveModel) -> None:
    post(live_model, (A,))
    publish(live_model, step_for(live_model, A))
    again = replace(A, id="again")
    post(live_model, (again,))
    before = weight(live_model)
    made = step_for(live_model, again)
    assert made.rounds == () and publish(live_model, made) == 4 and isinstance(live_model.ledger.delta(4), MemoryDelta)
    assert torch.equal(weight(live_model), before) and carried(live_model) == {"again": "weights"}
    check_answers(live_model, again)
    assert publish(live_model, made) is None, "there is nothing left to drop"


def test_an_edit_that_the_weights_do_not_answer_stays_in_memory(checkpoint: Path, tmp_path: Path) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger", "tests.unit.history.test_consolidation:Picky")
    post(live_model, (A, B))
    with pytest.raises(EditRejected, match="instead of the target") as refused:
        step_for(live_model, B)
    assert refused.value.code is Code.INEFFECTIVE
    made = step_for(live_model, A, B)
    assert made.answered == ("e0",) and made.rounds == ((A,),), "the step is made again without B"
    publish(live_model, made)
    assert carried(live_model) == {"e0": "weights", "e5": "memory"}
    check_answers(live_model, A, B)


def test_a_step_that_the_guard_refuses_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger")
    post(live_model, (A,))
    live_model.inspector.guard = replace(live_model.inspector.guard, change=type(live_model.inspector.guard.change)(0.0, 0.0))
    before, bank = weight(live_model), bank_of(live_model.model.module)
    with pytest.raises(VersionRefused):
        step_for(live_model, A)
    assert torch.equal(weight(live_model), before) and bank_of(live_model.model.module) is bank and live_model.version == 1
    check_answers(live_model, A)


def test_what_new_weights_would_lose_goes_back_into_memory_in_the_same_version(live_model: LiveModel) -> None:
    post(live_model, (A,), (B,))
    publish(live_model, step_for(live_model, A))
    made = replace(step_for(live_model, B), back=(A,))
    assert publish(live_model, made) == 4
    assert live_model.ledger.version(4).scorecard["consolidated"]["back"] == [A.to_json()]
    assert carried(live_model) == {"e0": "memory", "e5": "weights"}
    check_answers(live_model, A, B)
    check_is_at_head(live_model)


def test_a_record_that_another_one_would_stand_in_for_stays(live_model: LiveModel) -> None:
    """Keep the record of a question that the record of another edit would answer."""
    near = replace(A, prompt=f"{A.prompt} now", target=C.target, id="near", rephrasings=(A.prompt,))
    post(live_model, (near,), (A,))
    made = step_for(live_model, A)
    assert made.answered == ("e0",) and publish(live_model, made) is None
    assert carried(live_model)["e0"] == "memory"


def test_an_edit_is_taken_out_of_whichever_tier_has_it(live_model: LiveModel) -> None:
    unedited = [live_model.answers([edit]) for edit in (A, B, C)]
    post(live_model, (A, B), (C,), (D,))
    publish(live_model, step_for(live_model, A, B))
    by_memory = live_model.append(live_model.revert(["e10"], []))
    assert by_memory.scorecard["reverted"]["mode"] == "subtract" and isinstance(
        live_model.ledger.delta(by_memory.number), MemoryDelta
    )
    assert live_model.answers([C]) == unedited[2]
    check_answers(live_model, A, B, D)
    with pytest.raises(RevertRefused, match="made these edits again"):
        live_model.revert(["e0", "e5"], [], "subtract")
    by_weights = live_model.append(live_model.revert(["e0"], []))
    assert by_weights.scorecard["reverted"]["mode"] == "replay"
    assert [edit.id for edit in live_edits(live_model.ledger, by_weights.number)] == ["e5", "e15"]
    assert carried(live_model) == {"e5": "weights", "e15": "memory"}
    check_answers(live_model, B, D)
    check_is_at_head(live_model)
    second = live_model.append(live_model.revert(["e5"], []))
    assert (
        live_model.answers([A]) == unedited[0]
        and live_model.answers([B]) == unedited[1]
        and carried(live_model) == {"e15": "memory"}
    )
    assert second.scorecard["reverted"]["mode"] == "replay"
    check_is_at_head(live_model)


def test_a_replay_has_the_bits_of_never_having_had_the_edit(live_model: LiveModel, checkpoint: Path, tmp_path: Path) -> None:
    never = tiers_at(checkpoint, tmp_path / "never")
    for place, gone in ((live_model, ()), (never, (B,))):
        for group, moved in (((A, B), (A, B)), ((C, D), (C,)), ((E,), ())):
            post(place, tuple(edit for edit in group if edit not in gone))
            if moved:
                publish(place, step_for(place, *(edit for edit in moved if edit not in gone)))
    live_model.append(live_model.revert(["e5"], []))
    assert torch.equal(weight(live_model), weight(never)) and carried(live_model) == carried(never)
    mine, theirs = (split(place.state)[0].tensors for place in (live_model, never))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    check_answers(live_model, A, C, D, E)


@dataclass(frozen=True)
class Singular(Exact):
    """An editor whose system has no solution."""

    def edit(self, model, batch, state, cache=None):
        raise torch.linalg.LinAlgError("the matrix is singular")


def test_arithmetic_that_fails_is_a_refusal(checkpoint: Path, tmp_path: Path) -> None:
    live_model = tiers_at(checkpoint, tmp_path / "ledger", "tests.unit.history.test_consolidation:Singular")
    post(live_model, (A,))
    with pytest.raises(EditRejected, match="singular") as refused:
        step_for(live_model, A)
    assert refused.value.code is Code.EDITOR_FAILED
