"""The edits that a version holds: which of one prompt, which are asked next, and which are lost."""

from __future__ import annotations

import pytest

from errata.edit import Edit
from errata.guard.held_edits import MAX_REPAIRS, HeldEdits


def held_of(*edits: Edit, seed: int = 0) -> HeldEdits:
    held = HeldEdits(seed)
    held.add(edits)
    return held


def named(number: int, target: str = "x") -> Edit:
    return Edit(f"prompt {number}", target, id=f"e{number}{target}")


def test_of_two_edits_of_a_prompt_the_later_is_held() -> None:
    held = held_of(named(1), named(2), named(1, "y"), Edit("Prompt?", "z", form="chat"))
    assert {one.edit.target for one in held} == {"x", "y", "z"} and len(held) == 3
    assert set(held.by_id) == {"e2x", "e1y"}
    held.add([Edit("Prompt?", "w", form="both")])
    assert {one.edit.target for one in held} == {"x", "y", "w"}, "one of its forms is the other's"


def test_every_edit_is_asked_in_turn_whatever_the_batches_were() -> None:
    edits = [named(number) for number in range(20)]
    held, other = held_of(*edits), HeldEdits(0)
    for begin in range(0, 20, 6):
        other.add(edits[begin : begin + 6])
    assert [one.edit for one in held.next(5)] == [one.edit for one in other.next(5)]
    assert [one.edit for one in held.next(5)] != [one.edit for one in held_of(*edits, seed=1).next(5)]
    asked = set()
    for _ in range(4):  # ceil(20 / 5) versions
        for one in held.next(5):
            one.is_answered, one.asked_at = True, held.version
            asked.add(one.edit)
        held.add([])
    assert asked == set(edits)
    assert len(held.next(50, frozenset(edits[0].keys))) == 19


def test_edits_that_are_lost_are_repaired_a_few_times() -> None:
    held = held_of(named(1), named(2), Edit("other", "y", rephrasings=("prompt 2",)))
    assert [one.edit.prompt for one in held.open] == ["prompt 1", "prompt 2", "other"] and held.lost == []
    for one in held:
        one.is_answered, one.asked_at = False, held.version
    assert [one.edit.prompt for one in held.repairable] == ["prompt 1", "other"], "the other's prompt is given to a later edit"
    assert len(held.lost) == 3 and held.open == []
    for _ in range(MAX_REPAIRS):
        held.tried([named(1)])
    assert [one.edit.prompt for one in held.repairable] == ["other"]
    held.set([named(1), named(3)])
    assert [one.num_repairs for one in held] == [MAX_REPAIRS, 0] and held.lost == [] and len(held.open) == 2


def test_an_edit_that_is_answered_without_a_version_is_held_until_it_is_refused() -> None:
    held = held_of(named(1))
    before = held.version
    held.add_answered([named(1, "other"), Edit("prompt 1", "x", id="again"), named(4)])
    assert held.version == before and {one.edit.id for one in held} == {"e1x", "e4x"}
    assert held.by_id["again"].edit.id == "e1x", "the same correction"
    held.release("again")
    held.release("e4x")
    assert {one.edit.id for one in held} == {"e1x"}


@pytest.mark.parametrize(("is_answered", "versions_ago", "answers"), [(True, 0, True), (True, 1, False), (None, 0, False)])
def test_an_answer_is_known_of_the_version_alone(is_answered: bool | None, versions_ago: int, answers: bool) -> None:
    held = held_of(named(1))
    (one,) = held
    one.is_answered, one.asked_at = is_answered, held.version - versions_ago
    assert held.still_answers(named(1)) is answers and held.still_answers(Edit("prompt 1", "x")) is False
