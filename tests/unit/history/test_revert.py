"""Reverts by subtraction and by replay, on a small model with editors in closed form."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected
from errata.edit_memory.hooks import bank_of
from errata.editors.state import EditorState
from errata.guard.limits import VersionRefused
from errata.history.lineage import MadeBatch, batches, common_ancestor, live_edits, live_versions
from errata.history.revert_selection import RevertRefused
from errata.ledger import LedgerConflict
from errata.model.generation import greedy_texts
from serving.worker.live_model import LiveModel, LiveModelOptions
from tests.e2e.toy import WORLD, Toy

MATRIX = "model.layers.1.mlp.down_proj"
EDITS = [
    Edit(edit.prompt, edit.target, edit.subject, id=f"e{i}") for i, edit in enumerate(WORLD.edits("test", 30)) if i % 5 == 0
]
A, B, C, D, E, F = EDITS


@dataclass(frozen=True)
class Exact(Toy):
    """An editor that replaces the answer of the matrix to a key, so that a later edit corrects an earlier one.

    It refuses a batch of one edit whose subject is `alone`.
    """

    @torch.no_grad()
    def edit(self, model, batch, state, cache=None):
        if len(batch) == 1 and batch.edits[0].subject == "alone":
            raise EditRejected("it is alone", edit=0, field="subject", code=Code.EDITOR_FAILED)
        delta, after = super().edit(model, batch, state)
        (part,) = delta.parts.values()
        module = model.module.get_submodule(MATRIX)
        said_OE = module.weight @ (part.V_IR / part.V_IR.square().sum(0)) + module.bias[:, None]
        return WeightDelta({MATRIX: LowRank(part.U_OR - said_OE, part.V_IR)}), after


@dataclass(frozen=True)
class Weak(Toy):
    """An editor whose edit is answered only after it was made more than once."""

    strength: float = 10.0


def model_with(editor: str, checkpoint: Path, tmp_path: Path, **guard: str) -> LiveModel:
    """Make a live model whose guard is not strict: most of these editors write the first word of an answer alone."""
    settings = {"modules": "layers.1.mlp.down_proj"} if editor == "state" else {}
    guard = {"strict": "false"} | guard
    return LiveModel(LiveModelOptions(str(checkpoint), str(tmp_path / "ledger"), editor, settings=settings, guard=guard))


@pytest.fixture(params=["tests.e2e.toy:Toy", "state"], ids=["weights", "memory"])
def live_model(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> LiveModel:
    return model_with(request.param, checkpoint, tmp_path)


@pytest.fixture
def exact(checkpoint: Path, tmp_path: Path) -> LiveModel:
    return model_with("tests.unit.history.test_revert:Exact", checkpoint, tmp_path)


def post(live_model: LiveModel, *groups: tuple[Edit, ...]) -> None:
    for group in groups:
        live_model.append(live_model.make(group))


def weight(live_model: LiveModel) -> torch.Tensor:
    return live_model.model.module.get_submodule(MATRIX).weight.clone()


def memory(live_model: LiveModel) -> dict[str, str]:
    """Return the texts of the records that the model reads, by fact."""
    bank = bank_of(live_model.model.module)
    return {} if bank is None else {record.fact: record.text for record in bank}


def ids(live_model: LiveModel) -> list[str | None]:
    return [edit.id for edit in live_edits(live_model.ledger, live_model.ledger.head)]


def first_words(live_model: LiveModel, *edits: Edit) -> list[str]:
    from errata.model.generation import greedy

    return [live_model.model.tokenizer.decode(greedy(live_model.model, [edit.prompt], 1)[0]) for edit in edits]


def check_is_at_head(live_model: LiveModel) -> None:
    """Compare the live model with a new one over the same ledger, bit by bit; no hook may be left."""
    other = LiveModel(live_model.options)
    assert live_model.version == other.version == live_model.ledger.head
    assert torch.equal(weight(live_model), weight(other)) and memory(live_model) == memory(other)
    assert live_model.state.num_edits == other.state.num_edits
    assert list(live_model.inspector.earlier.held.by_edit) == list(other.inspector.earlier.held.by_edit)
    modules = live_model.model.module.modules()
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules) == (
        3 if memory(live_model) else 0
    )


@pytest.mark.parametrize("mode", ["auto", "subtract"])
def test_a_whole_version_is_subtracted(live_model: LiveModel, mode: str) -> None:
    post(live_model, (A, B), (C,), (D,))
    before = weight(live_model)
    made = live_model.revert(["e0", "e5"], [], mode)
    assert live_model.ledger.head == 3 and torch.equal(weight(live_model), before)
    version = live_model.append(made)
    assert (version.number, version.parent, version.edits) == (4, 3, ())
    assert version.scorecard["reverted"] == {"edits": ["e0", "e5"], "versions": [1], "mode": "subtract"}
    assert ids(live_model) == ["e10", "e15"] and [v.number for v in live_versions(live_model.ledger, 4)] == [2, 3]
    assert first_words(live_model, C, D) == [C.target, D.target]
    own = live_model.ledger.delta(1)
    change = own.parts[MATRIX].dense() if isinstance(own, WeightDelta) else torch.zeros_like(before)
    assert torch.allclose(weight(live_model), before - change, atol=1e-6 * float(before.abs().max()))
    assert len(memory(live_model)) == (0 if isinstance(own, WeightDelta) else 2)
    assert live_model.state.num_edits == 4, "the editor's state is the head's"
    check_is_at_head(live_model)


@pytest.mark.parametrize("mode", ["auto", "replay"])
def test_a_part_of_a_version_is_replayed(live_model: LiveModel, mode: str) -> None:
    post(live_model, (A, B), (C,), (D,))
    version = live_model.append(live_model.revert(["e5"], [], mode))
    assert (version.number, version.parent, version.edits) == (4, 0, (A, C, D))
    card = {"edits": ["e5"], "versions": [1], "mode": "replay", "head": version.number - 1, "batches": [1, 1, 1]}
    assert version.scorecard["reverted"] == card
    assert [batch.edits for batch in batches(version)] == [(A,), (C,), (D,)] and version.scorecard["num_edits"] == 3
    assert first_words(live_model, A, C, D) == [A.target, C.target, D.target]
    assert live_model.state.num_edits == 3
    check_is_at_head(live_model)
    post(live_model, (E,))
    assert live_model.ledger.chain(5) == [4, 5] and ids(live_model) == ["e0", "e10", "e15", "e20"]


@pytest.mark.parametrize("mode", ["subtract", "replay"])
def test_the_scorecard_shows_the_effect(live_model: LiveModel, mode: str) -> None:
    def say() -> list[str]:
        return [text.strip() for text in greedy_texts(live_model.model, [A.prompt, B.prompt], 8)]

    post(live_model, (C,))
    was = say()
    post(live_model, (A, B))
    said = say()
    card = live_model.append(live_model.revert(["e0", "e5"], [], mode)).scorecard
    rows = [{"prompt": e.prompt, "target": e.target, "was": w, "said": s} for e, w, s in zip((A, B), was, said, strict=True)]
    assert card["reverted_answers"] == [row | {"says": w} for row, w in zip(rows, say(), strict=True)]
    assert said != was == say() and card["went_back"] == 1.0
    assert "efficacy" not in card and card["edit_s"] > 0 and card["guard_s"] > 0


def test_the_scorecard_shows_an_answer_that_does_not_go_back(exact: LiveModel) -> None:
    """A later edit of the same prompt still determines the answer."""
    post(exact, (A,), (replace(A, target=C.target, id="later"),))
    card = exact.revert(["e0"], [], "replay").scorecard
    assert card["went_back"] == 0.0 and card["reverted_answers"][0]["says"].split()[0] == C.target


def test_at_most_ten_prompts_are_asked(live_model: LiveModel) -> None:
    many = tuple(replace(A, prompt=f"{A.prompt} {'the ' * i}", id=f"m{i}") for i in range(12))
    post(live_model, many)
    card = live_model.revert([], [1]).scorecard
    assert [row["prompt"] for row in card["reverted_answers"]] == [edit.prompt for edit in many[:10]]
    assert len(card["reverted"]["edits"]) == 12


def test_retention_is_measured_on_the_edits_that_stay(live_model: LiveModel) -> None:
    live_model.model.tokenizer.eos_token = None  # The random model ends no answer; a target counts when its words come.
    post(live_model, (A, B), (C,), (D,))
    found = live_model.revert(["e0"], [], "replay").scorecard
    assert found["retention"] == 1.0 and found["lost_retention"] == 0.0
    assert {held.edit.prompts for held in live_model.inspector.earlier.held} == {edit.prompts for edit in (A, B, C, D)}


def test_versions_and_edits_can_be_chosen_together(live_model: LiveModel) -> None:
    post(live_model, (A, B), (C,), (D, E))
    card = live_model.append(live_model.revert(["e15", "e15"], [2, 2])).scorecard["reverted"]
    assert (card["edits"], card["versions"], card["mode"]) == (["e10", "e15"], [2, 3], "replay")
    assert ids(live_model) == ["e0", "e5", "e20"]


def test_everything_can_be_reverted(live_model: LiveModel) -> None:
    base = weight(live_model)
    post(live_model, (A, B), (C,))
    version = live_model.append(live_model.revert([], [1, 2], "replay"))
    assert (version.parent, version.edits, ids(live_model), version.num_bytes) == (0, (), [], 0)
    assert torch.equal(weight(live_model), base) and live_model.state.num_edits == 0
    assert "retention" not in version.scorecard
    check_is_at_head(live_model)
    post(live_model, (D,))
    assert ids(live_model) == ["e15"]


def test_a_replay_does_not_bring_back_what_was_subtracted(exact: LiveModel) -> None:
    post(exact, (A,), (B, C), (D,))
    exact.append(exact.revert([], [1], "subtract"))
    post(exact, (E,))
    version = exact.append(exact.revert(["e5"], [], "replay"))  # The edit is in version 2, after the subtracted one.
    assert (version.number, version.parent) == (6, 0)
    assert ids(exact) == ["e10", "e15", "e20"] and batches(version) == [MadeBatch((edit,)) for edit in (C, D, E)]
    assert first_words(exact, C, D, E) == [C.target, D.target, E.target] and first_words(exact, A) != [A.target]
    check_is_at_head(exact)


def test_what_was_subtracted_before_the_branch_stays_subtracted(live_model: LiveModel) -> None:
    post(live_model, (A,), (B,))
    live_model.append(live_model.revert([], [1], "subtract"))
    post(live_model, (C, D))
    version = live_model.append(live_model.revert(["e10"], []))
    assert version.parent == 3 and ids(live_model) == ["e5", "e15"]


def test_a_version_whose_edit_was_made_again_is_replayed_with_the_same_bits(checkpoint: Path, tmp_path: Path) -> None:
    """The bits are those of a ledger in which the reverted edit was never posted."""
    found = []
    for name, kept in (("all", (A, B, C)), ("without", (B, C))):
        weak = model_with("tests.unit.history.test_revert:Weak", checkpoint, tmp_path / name, strict="true")
        weak.model.tokenizer.eos_token = None  # The random model ends no answer.
        one_word = [replace(edit, target=edit.target.split()[0]) for edit in kept]
        for edit in one_word:
            weak.append(weak.make([edit]))
        found.append(weak)
    everything, never = found
    assert all(version.scorecard["repeats"] for version in live_versions(everything.ledger, 3))
    version = everything.append(everything.revert(["e0"], [], "replay"))
    again = [v.scorecard["again"] for v in live_versions(never.ledger, 2)]
    assert version.scorecard["reverted"]["again"] == again
    assert [batch.again_to_json() for batch in batches(version)] == again
    assert torch.equal(weight(everything), weight(never)) and everything.state.num_edits == never.state.num_edits


def test_a_revert_of_a_replayed_version_keeps_its_batches(exact: LiveModel) -> None:
    post(exact, (A, B), (C, D), (E,))
    exact.append(exact.revert(["e0"], []))
    version = exact.append(exact.revert(["e10"], []))
    assert batches(version) == [MadeBatch((edit,)) for edit in (B, D, E)] and version.parent == 0
    check_is_at_head(exact)


def test_a_replayed_version_is_subtracted_after_another_subtraction(live_model: LiveModel) -> None:
    post(live_model, (A,), (B, C), (D,))
    live_model.append(live_model.revert(["e5"], []))  # Version 4 follows 1 and holds C and D.
    live_model.append(live_model.revert([], [1], "subtract"))
    version = live_model.append(live_model.revert([], [4], "subtract"))
    assert ids(live_model) == [] and version.parent == 5
    base = LiveModel(replace(live_model.options, ledger=f"{live_model.options.ledger}-other"))
    assert torch.allclose(weight(live_model), weight(base), atol=1e-5)
    check_is_at_head(live_model)


def test_auto_replays_if_the_guard_refuses_the_subtraction(exact: LiveModel) -> None:
    """The later edit found the fact in place and wrote next to nothing, so it is lost without the earlier one."""
    exact.model.tokenizer.eos_token = None
    exact.inspector.guard = replace(exact.inspector.guard, forgotten=replace(exact.inspector.guard.forgotten, warn=0, refuse=0))
    later = replace(A, id="later")
    post(exact, (A,), (later,))
    before = weight(exact)
    with pytest.raises(VersionRefused, match="of the earlier edits would be lost"):
        exact.revert(["e0"], [], "subtract")
    assert torch.equal(weight(exact), before)
    version = exact.append(exact.revert(["e0"], []))
    assert version.scorecard["reverted"]["mode"] == "replay" and version.scorecard["lost_retention"] == 0.0
    assert ids(exact) == ["later"] and first_words(exact, later) == [later.target]


def test_the_guard_refuses_a_replay_too(checkpoint: Path, tmp_path: Path) -> None:
    live_model = model_with("tests.e2e.toy:Toy", checkpoint, tmp_path)
    post(live_model, (A, B), (C,))
    limit = replace(live_model.inspector.guard.change, warn=1e-9, refuse=1e-9)
    live_model.inspector.guard = replace(live_model.inspector.guard, change=limit)
    with pytest.raises(VersionRefused, match="would change by"):
        live_model.revert(["e0"], [])
    assert live_model.ledger.newest == 2
    check_is_at_head(live_model)


@pytest.mark.parametrize(
    ("chosen", "versions", "mode", "code", "says"),
    [
        (["e9"], [], "auto", Code.UNKNOWN_EDIT, "no version holds an edit 'e9'"),
        (["e15"], [], "auto", Code.NOT_LIVE, "made in version 3, and is not .* part of the live version 5"),
        (["e0"], [], "auto", Code.NOT_LIVE, "made in version 1, and is not .* part of the live version 5"),
        ([], [9], "auto", Code.UNKNOWN_VERSION, "there is no version 9"),
        ([], [-1], "auto", Code.UNKNOWN_VERSION, "there is no version -1"),
        ([], [3], "auto", Code.NOT_LIVE, "version 3 is not .* part of the live version 5"),
        ([], [1], "auto", Code.NOT_LIVE, "version 1 is not .* part of the live version 5"),
        ([], [0], "auto", Code.NO_EDITS, "version 0 holds no edits"),
        ([], [4], "auto", Code.NO_EDITS, "to undo a revert, roll back to the version before it"),
        ([], [], "auto", Code.NOTHING_CHOSEN, "nothing is chosen"),
        (["e5"], [], "subtract", Code.PARTIAL_VERSION, "not all edits of 2 are chosen"),
        (["e5"], [], "twice", Code.INVALID_VALUE, "'twice' is not a mode; use auto, subtract, downdate, replay"),
    ],
)
def test_what_cannot_be_reverted_is_named(
    live_model: LiveModel, chosen: list[str], versions: list[int], mode: str, code: Code, says: str
) -> None:
    post(live_model, (A,), (B, C), (D,))
    live_model.move_to(2)
    live_model.append(live_model.revert(["e0"], [], "subtract"))
    post(live_model, (E,))
    before = weight(live_model)
    with pytest.raises(RevertRefused, match=says) as caught:
        live_model.revert(chosen, versions, mode)
    assert caught.value.code is code
    assert (live_model.ledger.head, live_model.ledger.newest) == (5, 5) and torch.equal(weight(live_model), before)


def test_an_editor_that_refuses_in_replay_changes_nothing(exact: LiveModel) -> None:
    lonely = replace(B, prompt=f"alone {B.prompt}", subject="alone")
    post(exact, (A, lonely), (C,))
    before = weight(exact)
    with pytest.raises(
        RevertRefused, match="the other edits of version 1 cannot be made again: edit 0, subject: it is alone"
    ) as caught:
        exact.revert(["e0"], [])
    assert caught.value.code is Code.NOT_REPLAYABLE and exact.ledger.newest == 2 and torch.equal(weight(exact), before)
    check_is_at_head(exact)


def test_versions_of_another_editor_are_not_replayed(live_model: LiveModel) -> None:
    post(live_model, (A, B))
    state = EditorState(3)
    live_model.ledger.append(1, live_model.ledger.delta(1), state, [C], {}, ("MEMIT", ""))
    live_model.move_to(2)
    with pytest.raises(RevertRefused, match=rf"cannot be replayed by {live_model.options.editor}.*version 2 by MEMIT"):
        live_model.revert(["e0"], [])
    assert live_model.revert(["e10"], []).scorecard["reverted"]["mode"] == "subtract"


def test_another_artifact_is_a_warning(live_model: LiveModel) -> None:
    post(live_model, (A, B))
    live_model.ledger.append(1, live_model.ledger.delta(1), live_model.state, [C], {}, (live_model.options.editor, "old"))
    live_model.move_to(2)
    card = live_model.revert(["e0"], []).scorecard
    assert card["warnings"] == ["versions 2 were made with another artifact than none"]


def test_a_revert_of_an_earlier_head_is_a_conflict(live_model: LiveModel) -> None:
    post(live_model, (A, B), (C,))
    made = live_model.revert(["e0"], [])
    live_model.move_to(1)
    with pytest.raises(LedgerConflict):
        live_model.append(made)
    assert live_model.ledger.newest == 2


def test_a_refusal_can_be_pickled() -> None:
    fault = pickle.loads(pickle.dumps(RevertRefused("gone", code=Code.NOT_LIVE, edit="e1", field="edits")))
    assert (str(fault), fault.code, fault.edit) == ("edit e1, edits: gone", Code.NOT_LIVE, "e1")


@pytest.mark.parametrize("mode", ["subtract", "replay"])
def test_a_memory_without_a_version_has_what_that_version_replaced(checkpoint: Path, tmp_path: Path, mode: str) -> None:
    live_model = model_with("state", checkpoint, tmp_path)
    again = replace(A, target=B.target, id="again")
    post(live_model, (A, C), (again, D))
    first = live_model.append(live_model.revert([], [2], mode)).number
    assert first_words(live_model, A, C) == [A.target, C.target] and len(memory(live_model)) == 2
    assert memory(live_model) == {record.fact: record.text for record in live_model.ledger.memory(1) or ()}
    check_is_at_head(live_model)
    live_model.move_to(2)
    live_model.append(live_model.revert([], [1], mode))
    assert first_words(live_model, A, D) == [B.target, D.target] and len(memory(live_model)) == 2
    check_is_at_head(live_model)
    live_model.move_to(first)
    live_model.append(live_model.revert(["e0", "e10"], [], mode))
    assert memory(live_model) == {} and live_model.ledger.memory(live_model.version) is None
    check_is_at_head(live_model)


def test_the_common_ancestor_is_the_last_shared_version(live_model: LiveModel) -> None:
    post(live_model, (A,), (B,), (C,))
    live_model.move_to(1)
    post(live_model, (D,))
    assert [common_ancestor(live_model.ledger, a, b) for a, b in ((3, 4), (2, 3), (3, 3), (0, 4))] == [1, 2, 3, 0]
