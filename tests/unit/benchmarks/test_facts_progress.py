"""Lines of progress of the comparison on the default model."""

from __future__ import annotations

import pytest

from benchmarks.facts_progress import in_parts


def test_parts_are_in_order_and_say_how_far_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(in_parts(list(range(5)), 2, "answers")) == [[0, 1], [2, 3], [4]]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", about")[0].strip() for line in lines] == ["answers: 2/5", "answers: 4/5"]
    assert list(in_parts([], 2, "answers")) == []
