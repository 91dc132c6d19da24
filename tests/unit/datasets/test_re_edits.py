"""Re-edits in a stream of edits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from errata.datasets.re_edits import ReEdits, in_rounds, with_re_edits
from errata.edit import Edit
from errata.testbed.world import World

WORLD = World(60)
EDITS = WORLD.edits("test", 100)
SIZE = 5


def truth_of(edit: Edit) -> str:
    relation = next(relation for relation, objects in WORLD.objects.items() if edit.target in objects)
    return WORLD.facts[str(edit.subject), relation]


def test_a_share_of_the_later_edits_are_re_edits_of_facts_of_earlier_batches() -> None:
    found = with_re_edits(EDITS, SIZE, ReEdits(0.5, 0.5), truth_of, seed=0)
    assert len(found) == len(EDITS)
    last: dict[frozenset[object], tuple[int, Edit]] = {}
    re_edits, reversions = 0, 0
    for i, (edit, given) in enumerate(zip(found, EDITS, strict=True)):
        if edit is given:
            assert edit.keys not in last
        else:
            at, before = last[edit.keys]
            assert at <= i - SIZE and edit.target != before.target
            assert (edit.rephrasings, edit.locality) == (before.rephrasings, before.locality)
            assert not edit.aliases and not edit.portability and edit.id is None
            relation = next(objects for objects in WORLD.objects.values() if before.target in objects)
            assert edit.target in relation
            re_edits, reversions = re_edits + 1, reversions + (edit.target == truth_of(edit))
        last[edit.keys] = (i, edit)
    assert 35 <= re_edits <= 60 and 0.3 < reversions / re_edits < 0.7


def test_a_share_of_zero_changes_nothing_and_a_seed_says_which_edits_change() -> None:
    assert with_re_edits(EDITS, SIZE, ReEdits(0.0), truth_of, seed=0) == EDITS
    one, other = (with_re_edits(EDITS, SIZE, ReEdits(0.3), truth_of, seed) for seed in (0, 1))
    assert one == with_re_edits(EDITS, SIZE, ReEdits(0.3), truth_of, 0) != other


def test_no_edit_goes_back_to_a_truth_that_is_none_or_unfit() -> None:
    for unfit in (None, "", "a\x00b"):
        assert with_re_edits(EDITS, SIZE, ReEdits(1.0, 1.0), lambda _, text=unfit: text, seed=0) == EDITS
    assert with_re_edits(EDITS, SIZE, ReEdits(1.0, 1.0), lambda edit: edit.target, seed=0) == EDITS


def test_a_fact_of_another_kind_than_all_others_takes_any_other_target() -> None:
    edits = [Edit("a is", "one", "a"), *(replace(EDITS[i], target="two") for i in range(SIZE + 1))]
    found = with_re_edits(edits, SIZE, ReEdits(1.0, 0.0), truth_of, seed=3)
    assert {edit.target for edit in found} <= {"one", "two"} and found != edits


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_are_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        ReEdits(share)
    with pytest.raises(ValueError, match="reversions of re-edits"):
        ReEdits(0.1, share)


def test_rounds_edit_every_fact_again_and_end_with_the_truth() -> None:
    found = in_rounds(EDITS, 3, truth_of, seed=0)
    rounds = [found[i : i + len(EDITS)] for i in range(0, len(found), len(EDITS))]
    assert len(rounds) == 5 and rounds[0] == EDITS
    for before, after in pairwise(rounds):
        for edit, again, given in zip(before, after, EDITS, strict=True):
            assert (again.keys, again.rephrasings, again.locality) == (given.keys, given.rephrasings, given.locality)
            assert again.target != edit.target and not again.portability and again.id is None
            assert next(one for one in WORLD.objects.values() if again.target in one).count(given.target) == 1
    assert all(edit.target != truth_of(edit) for edits in rounds[:-1] for edit in edits)
    assert [edit.target for edit in rounds[-1]] == [truth_of(edit) for edit in EDITS]
    assert found == in_rounds(EDITS, 3, truth_of, seed=0) != in_rounds(EDITS, 3, truth_of, seed=1)


def test_rounds_leave_out_facts_without_a_truth() -> None:
    without = EDITS[0].keys
    found = in_rounds(EDITS, 1, lambda edit: None if edit.keys == without else truth_of(edit), seed=0)
    assert len(found) == 3 * (len(EDITS) - 1) and without not in {edit.keys for edit in found}
    with pytest.raises(ValueError, match="no answer to any of these edits that could be a target"):
        in_rounds(EDITS, 1, lambda _: None, seed=0)


def test_rounds_need_another_target() -> None:
    with pytest.raises(ValueError, match="no edit has another target for 'a is'; take more edits"):
        in_rounds([Edit("a is", "one", "a"), Edit("b is", "two", "b")], 1, lambda edit: {"one": "two"}.get(edit.target), seed=0)
