"""The search for duplicates and contradictions in a stream of edits."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from errata.datasets.duplicates import NUM_EXAMPLES, HashedEdits
from errata.edit import Edit
from tests.unit.same_edits import each_pair


def hashed(edits: list[Edit]) -> HashedEdits:
    hashes = HashedEdits()
    for edit in edits:
        hashes.add(edit)
    return hashes


def test_repetitions_agree_with_a_plain_count() -> None:
    draw = random.Random(0)
    edits = [Edit(f"fact {draw.randrange(400)}", f"answer {draw.randrange(3)}") for _ in range(1000)]
    targets: dict[str, list[str]] = {}
    for edit in edits:
        targets.setdefault(edit.prompt, []).append(edit.target)
    found = hashed(edits).repetitions()
    assert found.num_duplicates == sum(len(seen) - len(set(seen)) for seen in targets.values())
    assert found.num_conflicts == sum(len(set(seen)) > 1 for seen in targets.values())
    assert found.num_in_conflict == sum(len(seen) for seen in targets.values() if len(set(seen)) > 1)
    assert len(found.conflicts) == NUM_EXAMPLES
    for one, other in found.conflicts:
        assert one < other and edits[one].prompt == edits[other].prompt and edits[one].target != edits[other].target
    for one, other in found.duplicates:
        assert one < other and edits[one] == edits[other]


@pytest.mark.parametrize("edits", [[], [Edit("a", "b")], [Edit("a", "b"), Edit("c", "b")]])
def test_nothing_is_repeated(edits: list[Edit]) -> None:
    found = hashed(edits).repetitions()
    assert (found.num_duplicates, found.num_conflicts, found.num_in_conflict) == (0, 0, 0)


@each_pair
def test_a_file_is_judged_as_a_batch_is(one: Edit, other: Edit, verdict: str) -> None:
    found = hashed([Edit("first", "x"), one, Edit("between", "x"), other]).repetitions()
    assert found.duplicates == (((1, 3),) if verdict == "repeats" else ()) and found.num_duplicates == len(found.duplicates)
    assert found.conflicts == (((1, 3),) if verdict == "contradicts" else ()) and found.num_conflicts == len(found.conflicts)
    assert found.num_in_conflict == 2 * found.num_conflicts


def test_an_edit_of_both_forms_contradicts_one_of_each() -> None:
    edits = [Edit("a", "x", form="both"), Edit("a", "y"), Edit("a", "z", form="chat"), Edit("a", "x", form="both")]
    found = hashed(edits).repetitions()
    assert (found.num_duplicates, found.num_conflicts, found.num_in_conflict) == (1, 2, 4)
    assert (found.duplicates, found.conflicts) == (((0, 3),), ((0, 1), (0, 2)))


def test_memory_grows_by_a_few_bytes_an_edit_and_not_by_its_text() -> None:
    def peak(num_edits: int) -> int:
        tracemalloc.start()
        try:
            hashes = hashed([])
            for number in range(num_edits):
                hashes.add(Edit(f"{'a long prompt ' * 20}{number}", "answer"))
            assert hashes.repetitions().num_conflicts == 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert (peak(12_000) - peak(4_000)) / 8_000 < 80
