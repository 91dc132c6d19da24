"""The search for duplicates and contradictions in a stream of edits."""

from __future__ import annotations

import random

import pytest

from errata.datasets.duplicates import NUM_EXAMPLES, HashedEdits
from errata.edit import Edit


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
