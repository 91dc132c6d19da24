"""Bisection of refused batches: which edits are made, which are refused, and why."""

from __future__ import annotations

from itertools import permutations, product
from random import Random

import pytest

from errata.edit import Code, Edit, EditRejected, Fault
from errata.guard.bisection import BatchBisection
from tests.unit.same_edits import each_pair

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
    assert set(refused) == {0, 2} and all("the later one counts" in why for why in refused.values())


@each_pair
def test_a_batch_is_judged_as_a_file_is(one, other, verdict):
    made, refused = settle(BatchBisection([one, other]), lambda group: None)
    assert (made, list(refused)) == (([(1,)], [0]) if verdict == "contradicts" else ([(0, 1)], []))
    assert one.keys.isdisjoint(other.keys) == (verdict == "is apart")


def test_after_the_later_target_is_refused_the_earlier_is_tried():
    def is_bad(group):
        third = [i for i in group if RIVALS[i].target == "third"]
        return EditRejected("harm", edit=group.index(third[0]), code=Code.EDITOR_FAILED) if third else None

    made, refused = settle(BatchBisection(RIVALS), is_bad)
    assert (1,) in made and (2,) in made
    assert refused[3] == refused[4] == "harm" and "the later one counts" in refused[0]


def test_remaining_edits_can_be_queued_again():
    bisection = BatchBisection(RIVALS)
    group = bisection.next_group()
    assert (group, bisection.left()) == ((1, 3, 4), (0, 2))
    bisection.refused(group, EditRejected("harm", code=Code.EDITOR_FAILED))
    assert bisection.next_group() == (1,) and bisection.left() == (0, 2, 3, 4)


def ineffective(group, *weak):
    """Refuse the edits `weak` of a group, as `candidate.ineffective` does; None if there are none in it."""
    places = [group.index(i) for i in weak if i in group]
    return EditRejected.of(Fault(p, "target", Code.INEFFECTIVE, "no effect") for p in places) if places else None


def test_an_edit_without_effect_waits_alone_behind_the_others():
    tried = []

    def is_bad(group):
        tried.append(group)
        return ineffective(group, 1, 3) if len(group) > 1 else ineffective(group, 3)

    made, refused = settle(BatchBisection(FIVE), is_bad)
    assert tried == [(0, 1, 2, 3, 4), (0, 2, 4), (1,), (3,)]
    assert made == [(0, 2, 4), (1,)] and refused == {3: "no effect"}


def test_a_group_whose_edits_all_have_no_effect_is_tried_one_by_one():
    made, refused = settle(BatchBisection(FIVE), lambda group: ineffective(group, *group) if len(group) > 1 else None)
    assert made == [(0,), (1,), (2,), (3,), (4,)] and not refused


def test_the_rivals_of_an_edit_without_effect_wait_until_it_is_settled():
    made, refused = settle(BatchBisection(RIVALS), lambda group: ineffective(group, 3, 4))
    assert made == [(1,), (2,)] and refused[3] == refused[4] == "no effect" and "the later one counts" in refused[0]


def test_edits_of_different_forms_are_no_rivals():
    two = [Edit("p", "x"), Edit("p", "y", form="chat")]
    assert settle(BatchBisection(two), lambda group: None) == ([(0, 1)], {})


FORMS = (("completion", "x"), ("both", "y"), ("chat", "z"))


@pytest.mark.parametrize("order", list(permutations(FORMS)), ids=lambda order: " ".join(form for form, _ in order))
@pytest.mark.parametrize("bad", list(product([False, True], repeat=3)), ids=str)
def test_edits_that_share_one_of_two_forms_are_all_settled(order, bad):
    """The latest of each form counts, also against an edit of both forms; what it contradicts in none is made."""
    edits = [Edit("p", target, form=form) for form, target in order]

    def is_bad(group):
        guilty = [i for i in group if bad[i]]
        return EditRejected("harm", edit=group.index(guilty[0]), code=Code.EDITOR_FAILED) if guilty else None

    made, refused = settle(BatchBisection(edits), is_bad)
    done = [i for group in made for i in group]
    assert sorted(done) + sorted(refused) == sorted(range(3), key=lambda i: (i in refused, i)) and len(done) == len(set(done))
    wanted: list[int] = []  # From the latest to the earliest: an edit is made if it is no worse than those after it.
    for i in (2, 1, 0):
        if not bad[i] and not any(edits[i].keys & edits[j].keys for j in wanted):
            wanted.append(i)
    assert sorted(done) == sorted(wanted)
    assert all(refused[i] == "harm" for i in refused if "counts" not in refused[i])


def test_an_edit_of_both_forms_does_not_outlast_a_later_one_in_either():
    """The latest agrees with the first, but the one between contradicts it in one form."""
    three = [Edit("p", "x", form="both"), Edit("p", "y"), Edit("p", "x", form="chat")]
    made, refused = settle(BatchBisection(three), lambda group: None)
    assert made == [(1, 2)] and list(refused) == [0] and "the later one counts" in refused[0]


@pytest.mark.parametrize("other", ["Cafe\u0301 is  in", " Café is in", "Café is\nin "], ids=["NFD", "blank", "line end"])
def test_a_prompt_in_another_unicode_form_or_with_other_white_space_is_the_same(other):
    made, refused = settle(BatchBisection([Edit("Café is in", "Lyon"), Edit(other, "Nice")]), lambda group: None)
    assert made == [(1,)] and "the later one counts" in refused[0]
    same = [Edit("Café is in", "Ca\u0301diz"), Edit(other, "Cádiz")]
    assert settle(BatchBisection(same), lambda group: None) == ([(0, 1)], {})


def test_a_contradiction_is_found_when_the_later_edit_is_made():
    """The first waits for the last, and is contradicted by the second already, in one of its two forms."""
    bisection = BatchBisection([Edit("p", "x", form="both"), Edit("p", "y"), Edit("p", "z", form="chat")])
    assert bisection.next_group() == (1, 2)
    assert bisection.refused((1, 2), EditRejected("harm", code=Code.EDITOR_FAILED)) == []
    assert bisection.next_group() == (1,)
    [(place, why)] = bisection.made((1,))
    assert (place, why.code) == (0, Code.CONTRADICTED) and "the later one counts" in why.reason
    assert bisection.next_group() == (2,)
    harm = EditRejected("harm", code=Code.EDITOR_FAILED)
    assert bisection.refused((2,), harm) == [(2, harm)] and bisection.next_group() is None and bisection.left() == ()


def test_an_edit_that_is_put_back_does_not_outlast_a_later_one():
    """The first agrees with the last, which is refused; then the one between counts."""
    bisection = BatchBisection([Edit("p", "x"), Edit("p", "y"), Edit("p", "x")])
    assert bisection.next_group() == (0, 2)
    bisection.postpone((0, 2), (0,))
    bisection.refused(bisection.next_group(), EditRejected("harm", code=Code.EDITOR_FAILED))
    assert bisection.next_group() == (1,)
    assert [place for place, _ in bisection.made((1,))] == [0] and bisection.next_group() is None


def contradict(one: Edit, other: Edit) -> bool:
    return bool(one.keys & other.keys) and one.target != other.target


@pytest.mark.parametrize("seed", range(300))
def test_whatever_happens_every_edit_is_settled_once_and_the_later_of_two_counts(seed):
    random = Random(seed)
    edits = [
        Edit(random.choice("pq"), random.choice("xyz"), form=random.choice(("completion", "chat", "both")))
        for _ in range(random.randint(1, 8))
    ]
    bad = {i for i in range(len(edits)) if random.random() < 0.4}
    bisection, made, settled = BatchBisection(edits), [], {}
    while (group := bisection.next_group()) is not None:
        guilty = [i for i in group if i in bad]
        if len(group) > 1 and random.random() < 0.3:
            bisection.postpone(group, tuple(sorted(random.sample(group, random.randint(1, len(group) - 1)))))
            continue
        if not guilty:
            assert not any(contradict(edits[i], edits[j]) for i in group for j in group)
            made += [(i, len(made)) for i in group]
            found, only = bisection.made(group), Code.CONTRADICTED
        else:
            edit = random.choice([None, group.index(guilty[0])])
            refusal = EditRejected("harm", edit=edit, code=Code.EDITOR_FAILED)
            refusal = random.choice([refusal, ineffective(group, *guilty)])
            found, only = bisection.refused(group, refusal), refusal.code
        for i, why in found:
            assert i not in settled and why.code == only
            settled[i] = why.code
            later = any(j > i and contradict(edits[i], edits[j]) for j, _ in made)
            assert later if why.code == Code.CONTRADICTED else i in bad
    when = dict(made)
    assert bisection.left() == () and sorted([*when, *settled]) == list(range(len(edits)))
    assert all(when[i] < when[j] for i in when for j in when if i < j and contradict(edits[i], edits[j]))
