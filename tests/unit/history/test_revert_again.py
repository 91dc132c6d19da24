"""Reverts of versions in which edits were made again: their own, or earlier ones that they would have lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from errata.delta.weight_delta import chained
from errata.edit import Code, Edit, EditBatch
from errata.editors.state import EditorState
from errata.history.lineage import MadeBatch, batches, live_versions
from errata.history.revert_selection import RevertRefused, select
from errata.ledger import Ledger
from errata.text.dialogue import Message
from serving.worker.live_model import LiveModel
from tests.e2e.toy import Toy
from tests.unit.history.test_revert import (
    MATRIX,
    A,
    B,
    C,
    D,
    check_is_at_head,
    first_words,
    ids,
    model_with,
    post,
    weight,
)

OTHER = replace(A, target="viola", id=None)  # B's target


@dataclass(frozen=True)
class Clumsy(Toy):
    """An editor that, with `C`, overwrites the answer to `A`, so that `A` is right again after it was made once more."""

    def edit(self, model, batch, state, cache=None):
        delta, after = super().edit(model, batch, state, cache)
        if C in batch.edits:
            damage, _ = replace(self, strength=1.5 * self.strength).edit(model, EditBatch((OTHER,)), state)
            delta = chained([delta, damage])
        return delta, after


Make = Callable[[str], LiveModel]


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Make:
    """Make live models with a strict guard, each with a ledger of its own, whose answers end after the first word."""

    def make(name: str, editor: str = "tests.unit.history.test_revert_again:Clumsy") -> LiveModel:
        made = model_with(editor, checkpoint, tmp_path / name, strict="true")
        made.model.tokenizer.eos_token = None
        return made

    return make


@pytest.fixture
def clumsy(model: Make) -> LiveModel:
    """Post A and B, C, which makes A again, and D."""
    made = model("clumsy")
    post(made, (A, B), (C,), (D,))
    return made


def again_of(edits: Sequence[Edit]) -> list[dict]:
    return [edit.to_json() for edit in edits]


def test_a_version_has_the_earlier_edit_that_it_made_again(clumsy: LiveModel) -> None:
    version = clumsy.ledger.version(2)
    assert version.scorecard["again"] == [again_of([A])] and version.edits == (C,) and ids(clumsy) == ["e0", "e5", "e10", "e15"]
    assert batches(version) == [MadeBatch((C,), ((A,),))] and version.scorecard["lost_retention"] == 0.0
    assert first_words(clumsy, A, B, C, D) == [A.target, B.target, C.target, D.target]


def test_what_was_made_again_is_replayed_with_the_same_bits(clumsy: LiveModel, model: Make) -> None:
    """The bits are those of a ledger in which the reverted edit was never posted."""
    never = model("never")
    post(never, (A,), (C,), (D,))
    version = clumsy.append(clumsy.revert(["e5"], []))
    assert version.scorecard["reverted"]["batches"] == [1, 1, 1] and version.parent == 0
    assert version.scorecard["reverted"]["again"] == [[], [again_of([A])], []]
    assert torch.equal(weight(clumsy), weight(never)) and clumsy.state.num_edits == never.state.num_edits
    assert first_words(clumsy, A, C, D) == [A.target, C.target, D.target]
    check_is_at_head(clumsy)


def test_a_reverted_edit_is_not_made_again_by_a_later_version(clumsy: LiveModel, model: Make) -> None:
    never = model("never")
    post(never, (B,), (C,), (D,))
    version = clumsy.append(clumsy.revert(["e0"], []))
    assert "again" not in version.scorecard["reverted"] and version.scorecard["reverted"]["mode"] == "replay"
    assert batches(version) == [MadeBatch((edit,)) for edit in (B, C, D)]
    assert torch.equal(weight(clumsy), weight(never)) and ids(clumsy) == ["e5", "e10", "e15"]
    assert first_words(clumsy, A) != [A.target]


@pytest.mark.parametrize("chosen", [{"ids": ["e0", "e5"], "versions": []}, {"ids": [], "versions": [1]}])
def test_a_version_whose_edit_a_later_one_made_again_is_not_subtracted(clumsy: LiveModel, chosen: dict) -> None:
    before = weight(clumsy)
    assert select(clumsy.ledger, 3, **chosen).made_again_in == (2,)
    with pytest.raises(RevertRefused, match=r"version 2 made these edits again.*replay instead") as refused:
        clumsy.revert(chosen["ids"], chosen["versions"], "subtract")
    assert (refused.value.code, refused.value.field) == (Code.PARTIAL_VERSION, "mode")
    assert clumsy.ledger.newest == 3 and torch.equal(weight(clumsy), before)
    version = clumsy.append(clumsy.revert(chosen["ids"], chosen["versions"], "auto"))
    assert version.scorecard["reverted"]["mode"] == "replay" and ids(clumsy) == ["e10", "e15"]
    assert first_words(clumsy, C, D) == [C.target, D.target] and first_words(clumsy, A) != [A.target]


def test_a_version_that_made_an_earlier_edit_again_is_subtracted_with_it(clumsy: LiveModel) -> None:
    """The edits that it made again only undid its own damage."""
    assert select(clumsy.ledger, 3, ["e10"], []).made_again_in == ()
    before, own = weight(clumsy), clumsy.ledger.delta(2).parts[MATRIX].dense()
    version = clumsy.append(clumsy.revert(["e10"], []))
    assert version.scorecard["reverted"]["mode"] == "subtract" and version.scorecard["lost_retention"] == 0.0
    assert torch.allclose(weight(clumsy), before - own, atol=1e-5)
    assert first_words(clumsy, A, B, D) == [A.target, B.target, D.target]


def test_versions_that_made_their_edits_again_are_subtracted_together(clumsy: LiveModel) -> None:
    assert select(clumsy.ledger, 3, [], [1, 2]).made_again_in == ()
    version = clumsy.append(clumsy.revert([], [1, 2]))
    assert version.scorecard["reverted"]["mode"] == "subtract" and ids(clumsy) == ["e15"]
    assert first_words(clumsy, D) == [D.target]


def test_a_revert_of_a_replayed_version_keeps_what_was_made_again(clumsy: LiveModel, model: Make) -> None:
    never = model("never")
    post(never, (A,), (C,))
    clumsy.append(clumsy.revert(["e5"], []))
    version = clumsy.append(clumsy.revert(["e15"], []))
    assert batches(version) == [MadeBatch((A,)), MadeBatch((C,), ((A,),))]
    assert torch.equal(weight(clumsy), weight(never))
    version = clumsy.append(clumsy.revert(["e0"], []))
    assert batches(version) == [MadeBatch((C,))] and ids(clumsy) == ["e10"]


def as_an_earlier_release(made: LiveModel, to: LiveModel) -> None:
    """Append the versions to another ledger with scorecards that only count how often the batch was made again."""
    for version in live_versions(made.ledger, made.ledger.head):
        card = {name: value for name, value in version.scorecard.items() if name != "again"}
        delta, state = made.ledger.delta(version.number), made.ledger.state(version.number)
        assert state is not None and card["repeats"] > 0
        to.ledger.append(version.number - 1, delta, state, version.edits, card, to.origin)
    to.move_to(made.ledger.head)


def test_versions_of_earlier_releases_are_replayed(model: Make) -> None:
    """Their scorecards have `repeats: n` without the edits: the whole batch was made again."""
    made, old = (model(name, "tests.unit.history.test_revert:Weak") for name in ("made", "old"))
    post(made, (A,), (B,), (C,))
    as_an_earlier_release(made, old)
    assert [batches(v) for v in live_versions(old.ledger, 3)] == [batches(v) for v in live_versions(made.ledger, 3)]
    versions = [one.append(one.revert(["e0"], [], "replay")) for one in (made, old)]
    assert torch.equal(weight(made), weight(old)) and batches(versions[0]) == batches(versions[1])
    assert "again" in versions[1].scorecard["reverted"], "a new scorecard holds the edits"


@pytest.fixture
def appended(ledger: Ledger, random_delta) -> Callable[..., list[MadeBatch]]:
    """Append a version with a scorecard, and read its batches from the disk."""

    def append(edits: Sequence[Edit], card: dict) -> list[MadeBatch]:
        number = ledger.append(ledger.head, random_delta(0), EditorState(), edits, card, ("RLEdit", "")).number
        return batches(Ledger.open(ledger.directory).version(number))

    return append


CHAT = Edit(
    "Who?",
    "Ann",
    rephrasings=("Who is it?",),
    id="chat",
    poster="bob",
    form="chat",
    before=(Message("system", "Be brief."),),
    aliases=("Anna",),
    answer="It is Ann.",
)


def test_what_was_made_again_is_read_as_it_was_written(appended: Callable[..., list[MadeBatch]]) -> None:
    """Reverts compare edits, so an edit that was made again equals that of its own version."""
    assert appended([CHAT], {}) == [MadeBatch((CHAT,))]
    assert appended([A, CHAT], {"repeats": 2, "again": [again_of([A, CHAT]), again_of([CHAT])]}) == [
        MadeBatch((A, CHAT), ((A, CHAT), (CHAT,)))
    ]
    made = MadeBatch((A,), ((CHAT, B), (B,)))
    assert made.again_to_json() == [again_of([CHAT, B]), again_of([B])]
    reverted = {"mode": "replay", "batches": [1, 2], "again": [made.again_to_json(), []]}
    assert appended([A, C, D], {"reverted": reverted}) == [made, MadeBatch((C, D))]


def test_counts_of_earlier_releases_are_whole_batches(appended: Callable[..., list[MadeBatch]]) -> None:
    assert appended([A, B], {"repeats": 2}) == [MadeBatch((A, B), ((A, B), (A, B)))]
    assert appended([A, B], {}) == [MadeBatch((A, B))]
    reverted = {"mode": "replay", "batches": [2, 1], "repeats": [0, 1]}
    assert appended([A, B, C], {"reverted": reverted}) == [MadeBatch((A, B)), MadeBatch((C,), ((C,),))]
    assert appended([A, B, C], {"reverted": {"mode": "replay", "batches": [2, 1]}}) == [MadeBatch((A, B)), MadeBatch((C,))]
    assert appended([], {"reverted": {"mode": "replay", "batches": []}}) == []
