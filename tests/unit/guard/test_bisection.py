"""Bisection of refused batches: which edits are made, which are refused, and why."""

from __future__ import annotations

import pytest

from errata.edit import Code, Edit, EditRejected
from errata.guard.bisection import BatchBisection

FIVE = [Edit(str(i), "x", id=f"id-{i}") for i in range(5)]


def settle(bisection: BatchBisection, is_bad) -> tuple[list[tuple[int, ...]], dict[int, str]]:
    """Return the groups that were made and the refusals by position; `is_bad` returns the refusal of a group, or None."""
    made, refused = [], {}
    while (group := bisection.next_group()) is not None:
        assert group, "an empty group is never tried"
        refusal = is_bad(group)
        if refusal is None:
            made.append(group)
        settled = bisection.made(group) if refusal is None else bisection.refused(group, refusal)
        for i, why in settled:
            assert i not in refused
            refused[i] = why.reason
    assert bisection.left() == ()
    return made, refused


def test_a_batch_without_fault_is_one_group():
    assert settle(BatchBisection(FIVE), lambda group: None) == ([(0, 1, 2, 3, 4)], {})
    assert settle(BatchBisection([]), lambda group: None) == ([], {})


@pytest.mark.parametrize("guilty", range(5))
def test_a_refusal_without_an_edit_is_traced_by_halving(guilty):
    made, refused = settle(
        BatchBisection(FIVE), lambda group: EditRejected("harm", code=Code.EDITOR_FAILED) if guilty in group else None
    )
    assert refused == {guilty: "harm"}
    assert [i for group in made for i in group] == [i for i in range(5) if i != guilty]


def test_a_refusal_names_an_edit_by_position_or_id():
    def by_place(group):
        return EditRejected("no", edit=group.index(3), code=Code.EDITOR_FAILED) if 3 in group else None

    def by_id(group):
        return EditRejected("no", edit="id-3", code=Code.EDITOR_FAILED) if 3 in group else None

    for is_bad in (by_place, by_id):
        assert settle(BatchBisection(FIVE), is_bad) == ([(0, 1, 2, 4)], {3: "no"})


def test_an_id_shared_by_two_edits_blames_the_first():
    twins = [Edit("a", "x", id="same"), Edit("b", "x", id="same")]
    bisection = BatchBisection(twins)
    ((position, _),) = bisection.refused(bisection.next_group(), EditRejected("no", edit="same", code=Code.EDITOR_FAILED))
    assert (position, bisection.next_group(), bisection.next_group()) == (0, (1,), None)


def test_a_position_outside_the_group_is_ignored():
    made, refused = settle(
        BatchBisection(FIVE), lambda group: EditRejected("harm", edit=99, code=Code.EDITOR_FAILED) if 2 in group else None
    )
    assert refused == {2: "harm"} and sorted(i for group in made for i in group) == [0, 1, 3, 4]


def test_many_refusals_need_no_deep_recursion():
    many = [Edit(str(i), "x") for i in range(3000)]
    made, refused = settle(BatchBisection(many), lambda group: EditRejected("no", edit=0, code=Code.EDITOR_FAILED))
    assert not made and len(refused) == 3000


RIVALS = [Edit("p", "first"), Edit("q", "x"), Edit("p", "second"), Edit("p", "third"), Edit("p", "third")]


def test_the_later_of_two_targets_for_one_prompt_is_made():
    made, refused = settle(BatchBisection(RIVALS), lambda group: None)
    assert made == [(1, 3, 4)]
    assert set(refused) == {0, 2} and all("'third'; the later one counts" in why for why in refused.values())


def test_after_the_later_target_is_refused_the_earlier_is_tried():
    def is_bad(group):
        third = [i for i in group if RIVALS[i].target == "third"]
        return EditRejected("harm", edit=group.index(third[0]), code=Code.EDITOR_FAILED) if third else None

    made, refused = settle(BatchBisection(RIVALS), is_bad)
    assert (1,) in made and (2,) in made
    assert refused[3] == refused[4] == "harm" and "'second'; the later one counts" in refused[0]


def test_remaining_edits_can_be_queued_again():
    bisection = BatchBisection(RIVALS)
    group = bisection.next_group()
    assert (group, bisection.left()) == ((1, 3, 4), (0, 2))
    bisection.refused(group, EditRejected("harm", code=Code.EDITOR_FAILED))
    assert bisection.next_group() == (1,) and bisection.left() == (0, 2, 3, 4)
