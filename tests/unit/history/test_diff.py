"""Differences between two versions: norms, edits and scores."""

from __future__ import annotations

import pytest
import torch

from errata.delta.parts import Dense, LowRank, Sparse
from errata.delta.weight_delta import WeightDelta, chained, in_series
from errata.edit import Edit
from errata.editors.state import EditorState
from errata.history import diff as diffs
from errata.history.diff import diff, norm
from errata.ledger import Ledger, UnknownVersion
from tests.unit.conftest import MATRICES


def add(ledger: Ledger, delta: WeightDelta, *edits: Edit, parent: int | None = None, **card: object) -> None:
    head = ledger.head
    ledger.append(head if parent is None else parent, delta, EditorState(), edits, card, ("Any", ""), expected_head=head)


def total(ledger: Ledger, number: int, matrix: str) -> torch.Tensor:
    parts = [delta.parts[matrix].dense().double() for delta in ledger.segments(number) if matrix in delta.parts]
    return torch.stack([torch.zeros(64, 96, dtype=torch.float64), *parts]).sum(0)


@pytest.fixture
def forked(ledger: Ledger, random_delta) -> Ledger:
    """Make the versions 1 - 2 - 3 (3 changes one matrix), and 4 - 5, which follow 1."""
    add(ledger, random_delta(1), Edit("a", "x", id="a"), efficacy=0.5, warnings=["some"])
    add(ledger, random_delta(2), Edit("b", "x", id="b"), efficacy=1.0, is_fine=True)
    alone = WeightDelta({MATRICES[0]: random_delta(3).parts[MATRICES[0]]})
    add(ledger, alone, Edit("c", "x"), efficacy=0.75, locality=0.9)
    add(ledger, random_delta(4), Edit("c", "x"), Edit("d", "x"), parent=1, retention=1.0)
    add(ledger, random_delta(5).scaled(0.5), Edit("a", "y", id="new"), efficacy=0.25)
    return ledger


@pytest.mark.parametrize(("a", "b"), [(0, 3), (3, 0), (1, 2), (3, 5), (5, 3), (4, 2)])
def test_the_norms_are_those_of_the_matrices_between(forked: Ledger, a: int, b: int, monkeypatch) -> None:
    monkeypatch.setattr(diffs, "BLOCK", 3)
    found = diff(forked, a, b)["norms"]
    for matrix in MATRICES:
        wanted = float((total(forked, b, matrix) - total(forked, a, matrix)).norm())
        assert found.get(matrix, 0.0) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("a", "b"), [(0, 60), (60, 0), (25, 60)])
def test_no_more_numbers_are_held_than_the_matrix_has(ledger: Ledger, random_delta, monkeypatch, a: int, b: int) -> None:
    """The factors have rank 58 and more in all; those of rank 39 already have more numbers than the 64 by 96 matrices."""
    folds, held = [], []
    fold, add_piece = diffs._Sum._fold, diffs._Sum.add

    def counted(self) -> None:
        folds.append(sum(each.rank for each in self._factors))
        fold(self)

    def watched(self, piece) -> None:
        add_piece(self, piece)
        held.append(sum(each.rank for each in self._factors) * (64 + 96))

    monkeypatch.setattr(diffs._Sum, "_fold", counted)
    monkeypatch.setattr(diffs._Sum, "add", watched)
    for number in range(30):
        add(ledger, random_delta(number))
    add(ledger, random_delta(30), parent=20)
    for number in range(31, 60):
        add(ledger, random_delta(number, rank=4))
    found = diff(ledger, a, b)["norms"]
    for matrix in MATRICES:
        wanted = float((total(ledger, b, matrix) - total(ledger, a, matrix)).norm())
        assert found[matrix] == pytest.approx(wanted, rel=1e-6)
    assert len(folds) > 2 and max(folds) <= 44 and max(held) <= 64 * 96


def test_kinds_of_deltas_can_be_mixed(ledger: Ledger, random_delta) -> None:
    """A dense delta among factors, a sparse one of another matrix, and a series of both, in both directions."""
    low_rank = random_delta(1)
    dense = WeightDelta({MATRICES[0]: Dense(torch.randn(64, 96, generator=torch.Generator().manual_seed(2)))})
    sparse = WeightDelta({MATRICES[1]: Sparse(torch.tensor([0, 100]), torch.tensor([3.0, 4.0]), (64, 96))})
    for delta in (low_rank, dense, sparse, random_delta(3), in_series([low_rank, dense, sparse])):
        add(ledger, delta)
    assert diff(ledger, 2, 3)["norms"] == {MATRICES[1]: 5.0}
    for a, b in ((0, 5), (5, 0), (1, 4)):
        found = diff(ledger, a, b)["norms"]
        for matrix in MATRICES:
            wanted = float((total(ledger, b, matrix) - total(ledger, a, matrix)).norm())
            assert found[matrix] == pytest.approx(wanted, rel=1e-6)


def test_a_diff_lists_added_and_removed_edits_and_both_scores(forked: Ledger) -> None:
    found = diff(forked, 3, 5)
    assert (found["from"], found["to"], found["common"]) == (3, 5, 1)
    assert [edit["prompt"] for edit in found["added"]] == ["d", "a"] and found["added"][1]["id"] == "new"
    assert [edit["prompt"] for edit in found["removed"]] == ["b"], "an edit without an id is identified by its content"
    assert found["scorecard"] == {"efficacy": [0.75, 0.25], "locality": [0.9, None]}


def test_a_diff_lists_the_answers_that_were_recorded_and_differ(ledger: Ledger, random_delta) -> None:
    add(ledger, random_delta(1), Edit("a", "x", id="a"), Edit("b", "x", id="b"), answers=[["it is w", "it is x"], ["x", "x"]])
    add(ledger, random_delta(2), Edit("a", "y", id="again"), answers=[["it is x", "it is y"]])
    add(ledger, random_delta(3), Edit("a", "z", id="other"), Edit("c", "z", id="c"), parent=1, answers=[["it is x", "it is z"]])
    add(ledger, random_delta(4), Edit("d", "z", id="d"), parent=1)
    assert diff(ledger, 0, 2)["answers"] == [{"prompt": "a", "from": "it is w", "to": "it is y"}]
    assert diff(ledger, 2, 0)["answers"] == [{"prompt": "a", "from": "it is y", "to": "it is w"}]
    assert diff(ledger, 2, 3)["answers"] == [{"prompt": "a", "from": "it is y", "to": "it is z"}]
    assert diff(ledger, 1, 4)["answers"] == [], "the answers of an imported version are not known"


def test_a_version_does_not_differ_from_itself(forked: Ledger) -> None:
    found = diff(forked, 2, 2)
    assert (found["common"], found["added"], found["removed"], found["norms"]) == (2, [], [], {})
    assert found["scorecard"] == {"efficacy": [1.0, 1.0]}
    assert diff(forked, 0, 0)["scorecard"] == {}


def test_what_was_subtracted_is_removed(forked: Ledger, random_delta) -> None:
    add(forked, forked.delta(4).scaled(-1.0), reverted={"edits": [], "versions": [4], "mode": "subtract"})
    assert [edit["prompt"] for edit in diff(forked, 5, 6)["removed"]] == ["c", "d"]
    assert [edit["prompt"] for edit in diff(forked, 1, 6)["added"]] == ["a"]
    between = diff(forked, 1, 6)["norms"][MATRICES[0]]
    assert between == pytest.approx(forked.version(5).norms[MATRICES[0]], rel=1e-6)


def test_factors_that_cancel_have_a_small_norm(random_delta) -> None:
    """Inner products in fp32 would leave an error of 1e-4."""
    delta = random_delta(0, 10.0)
    for name, part in chained([delta, random_delta(1, 1e-3), delta.scaled(-1.0)]):
        assert norm(part) == pytest.approx(random_delta(1, 1e-3).parts[name].norm(), rel=1e-2)


def test_sparse_deltas_and_series_have_the_norms_of_their_matrices(random_delta) -> None:
    sparse = Sparse(torch.tensor([0, 100]), torch.tensor([3.0, 4.0]), (64, 96))
    assert norm(sparse) == 5.0
    name, low_rank = next(iter(random_delta(0)))
    assert isinstance(low_rank, LowRank)
    series = in_series([WeightDelta({name: part}) for part in (low_rank, Dense(torch.ones(64, 96)))])
    assert norm(series.parts[name]) == pytest.approx(float((low_rank.dense() + 1).norm()), rel=1e-5)


@pytest.mark.parametrize(("a", "b"), [(1, 9), (9, 1), (-1, 1)])
def test_an_unknown_version_is_named(forked: Ledger, a: int, b: int) -> None:
    with pytest.raises(UnknownVersion, match="there is no version"):
        diff(forked, a, b)
