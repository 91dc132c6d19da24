"""Down-date with every editor that has normal equations: a version without an edit, beside one that never had the edit.

The reference is made of the same batches without the edit. Before the first of them nothing differs, so that the targets of its
own batch are the same, and only later batches found theirs with the edit in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.edit import Code, Edit, EditBatch, batches_of
from errata.editors.editor import Editor
from errata.editors.past_keys import preconditioners_for
from errata.history.lineage import batches, live_edits
from errata.history.revert_selection import RevertRefused
from errata.model.generation import greedy_texts
from errata.model.language_model import LanguageModel
from errata.testbed.world import World
from tests.contract.model_at_head import ModelAtHead
from tests.editors_under_test import UNDER_TEST, editor_under_test

ADDITIVE = (
    "RLEdit",
    "RLEdit-gate-up-two-passes",
    "RLEdit-ridge",
    "RLEdit-published",
    "MALMEN",
    "MALMEN-published",
    "MEMIT",
    "MEMIT-with-memory",
    "AlphaEdit",
    "BLUE",
    "BLUE-of-MEMIT",
)
ONE_PASS = tuple(name for name in ADDITIVE if "passes" not in name)


def test_these_editors_have_normal_equations(tiny_model: LanguageModel) -> None:
    found = [name for name in UNDER_TEST if editor_under_test(name, tiny_model).normal_equations(tiny_model) is not None]
    assert found == list(ADDITIVE)


def edits_of(count: int) -> list[Edit]:
    return [replace(edit, id=f"e{i}") for i, edit in enumerate(World(20).edits("test", count))]


class Pair:
    """A ledger with all edits, and one that never had some of them; `base` are the matrices of the unedited model."""

    def __init__(self, editor: Editor, model_dir: Path, folder: Path, gone: tuple[str, ...]) -> None:
        self.here, self.never = (ModelAtHead(editor, model_dir, folder / name) for name in ("here", "never"))
        self.base, self.gone = self.here.weights(), gone

    def post(self, edits: list[Edit], size: int = 3) -> None:
        for batch in batches_of(edits, size):
            self.here.edit(batch.edits)
            if left := [edit for edit in batch if edit.id not in self.gone]:
                self.never.edit(left)

    def distance(self) -> float:
        """Return the distance of the two models, relative to what the edits changed."""
        never = self.never.weights()
        return float((self.here.weights() - never).norm() / (never - self.base).norm())

    def equal_answers(self) -> float:
        prompts = [edit.prompts[0] for edit in edits_of(12)]
        one, other = (greedy_texts(place.model, prompts, 4) for place in (self.here, self.never))
        return sum(map(str.__eq__, one, other)) / len(prompts)

    def rows(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Iterate over the tensors of both saved states."""
        mine, theirs = (place.ledger.state(place.ledger.head) for place in (self.here, self.never))
        assert mine is not None and theirs is not None and mine.num_edits == theirs.num_edits
        assert mine.tensors.keys() == theirs.tensors.keys()
        yield from ((name, mine.tensors[name], theirs.tensors[name]) for name in mine.tensors)


@pytest.mark.parametrize("name", ONE_PASS)
def test_edits_of_the_newest_version_are_taken_out_as_if_never_posted(
    name: str, model_dir: Path, tiny_model: LanguageModel, tmp_path: Path
) -> None:
    """No later batch was made with them in place. Behind another edited matrix, the keys of their own batch were."""
    pair = Pair(editor_under_test(name, tiny_model), model_dir, tmp_path, ("e7", "e8"))
    pair.post(edits_of(9))
    assert pair.distance() > 1e-2
    version = pair.here.revert(["e7", "e8"], "downdate")
    assert version.parent == 2 and [edit.id for edit in version.edits] == ["e6"]
    assert version.scorecard["reverted"]["mode"] == "downdate" and version.scorecard["reverted"]["head"] == 3
    assert pair.distance() < (0.3 if len(pair.here.spec.names) > 1 and name == "BLUE" else 2e-5)
    assert pair.equal_answers() == 1.0


@pytest.mark.parametrize("name", ADDITIVE)
def test_earlier_edits_are_taken_out_and_later_ones_build_on_that(
    name: str, model_dir: Path, tiny_model: LanguageModel, tmp_path: Path
) -> None:
    editor = editor_under_test(name, tiny_model)
    pair = Pair(editor, model_dir, tmp_path, ("e1", "e4"))
    pair.post(edits_of(9))
    before = pair.distance()
    version = pair.here.revert(["e1", "e4"], "downdate")
    assert version.parent == 0 and [len(batch.edits) for batch in batches(version)] == [2, 2, 3]
    assert pair.distance() < before
    for key, mine, theirs in pair.rows():
        is_behind = key in pair.here.spec.names[1:]  # Keys there depend on what was written before it.
        assert mine.shape == theirs.shape and (is_behind or torch.equal(mine, theirs)), key
    _check_preconditioners(pair.here)
    pair.post(edits_of(12)[9:])
    assert pair.distance() < before
    _check_preconditioners(pair.here)


def _check_preconditioners(here: ModelAtHead) -> None:
    """Compare the preconditioners in memory with those that the saved rows give."""
    equations = here.editor.normal_equations(here.model)
    saved = here.ledger.state(here.ledger.head)
    assert equations is not None and saved is not None
    batch = EditBatch(())
    for name, one in preconditioners_for(batch, here.state, equations.bases, equations.weight).items():
        fresh = replace(saved, derived={})
        other = preconditioners_for(batch, fresh, equations.bases, equations.weight)[name]
        eye_II = torch.eye(len(one.base_II), dtype=torch.float64)
        assert torch.allclose(one.apply(eye_II), other.apply(eye_II), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["RLEdit", "MEMIT-with-memory", "MALMEN"])
def test_a_down_dated_version_is_down_dated_and_replayed_again(
    name: str, model_dir: Path, tiny_model: LanguageModel, tmp_path: Path
) -> None:
    """Taken out one after the other, or together, is the same."""
    editor = editor_under_test(name, tiny_model)
    one, other = (Pair(editor, model_dir, tmp_path / which, ()) for which in ("one", "other"))
    for pair in (one, other):
        pair.post(edits_of(9))
    one.here.revert(["e1"], "downdate")
    version = one.here.revert(["e5"], "downdate")
    other.here.revert(["e1", "e5"], "downdate")
    change = (other.here.weights() - other.base).norm()
    assert (one.here.weights() - other.here.weights()).norm() < 1e-5 * change
    replayed = one.here.revert(["e7"], "replay")
    assert replayed.parent == version.parent == 0
    assert [edit.id for edit in live_edits(one.here.ledger, replayed.number)] == ["e0", "e2", "e3", "e4", "e6", "e8"]


@pytest.mark.parametrize("name", ["RLEdit", "MEMIT-with-memory", "AlphaEdit", "MALMEN"])
def test_an_edit_that_was_made_again_is_taken_out_of_all_its_calls(
    name: str, model_dir: Path, tiny_model: LanguageModel, tmp_path: Path
) -> None:
    editor, edits = editor_under_test(name, tiny_model), edits_of(8)
    pair = Pair(editor, model_dir, tmp_path, ("e1",))
    for place, gone in ((pair.here, ()), (pair.never, pair.gone)):
        for own, again in ((edits[:4], edits[1:3]), (edits[4:], edits[1:6])):
            place.edit_again(*([edit for edit in part if edit.id not in gone] for part in (own, again)))
    before = pair.distance()
    version = pair.here.revert(["e1"], "downdate")
    kept = [[edit for edit in part if edit.id != "e1"] for part in (edits[:4], edits[1:3], edits[4:], edits[1:6])]
    assert [(list(one.edits), [list(made) for made in one.again]) for one in batches(version)] == [
        (kept[0], [kept[1]]),
        (kept[2], [kept[3]]),
    ]
    assert pair.distance() < before
    for key, mine, theirs in pair.rows():
        assert torch.equal(mine, theirs), key
    _check_preconditioners(pair.here)


@pytest.mark.parametrize("name", ["RLEdit-three-passes", "UltraEdit", "ROME", "NSE", "RECT", "state"])
def test_without_normal_equations_it_is_refused_and_auto_takes_another_way(
    name: str, model_dir: Path, tiny_model: LanguageModel, tmp_path: Path
) -> None:
    here = ModelAtHead(editor_under_test(name, tiny_model), model_dir, tmp_path)
    for batch in batches_of(edits_of(6), 3):
        here.edit(batch.edits)
    with pytest.raises(RevertRefused, match="does not follow from keys and targets alone") as caught:
        here.revert(["e1"], "downdate")
    assert caught.value.code is Code.NOT_ADDITIVE and here.ledger.head == 2
    assert here.revert(["e1"], "auto").scorecard["reverted"]["mode"] == "replay"
