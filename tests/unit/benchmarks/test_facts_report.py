"""The report of the comparison on the default model: bounds, kept results, and the points of the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.facts_picture import points_of
from benchmarks.facts_report import bounds_of, scale_of
from benchmarks.facts_rows import ORACLE, UNEDITED
from benchmarks.facts_store import RowStore


def row(editor: str, question: float, agreement: float | None = 1.0, seed: int = 0) -> dict[str, Any]:
    forms = {"question": question, "phrasing": 0.5, "other_system": 0.5, "second_turn": None}
    return {"editor": editor, "seed": seed, "agreement": agreement, "edit_s": None, "added_ms": 1.0, **forms}


def test_bounds_are_seen_or_missed() -> None:
    rows = [row(UNEDITED, 0.0), row(ORACLE, 0.8), row("SCR", 0.77, 0.97), row("RLEdit", 0.9, 0.3), row("SCR", 0.7, seed=1)]
    found = list(bounds_of(rows))
    assert [(one.what.partition(" ")[0], one.is_seen) for one in found] == [("SCR", True), ("SCR", False), ("SCR", True)]
    assert found[0].least == pytest.approx(0.76) and str(found[1]).startswith("MISSED: SCR leaves unrelated answers")


def test_a_kept_result_is_made_again_for_another_key_or_a_fresh_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    numbers = iter(range(9))

    def make() -> int:
        return next(numbers)

    assert [RowStore("x").kept("SCR 0", {"edits": 10}, make) for _ in range(2)] == [0, 0]
    assert RowStore("x").kept("SCR 0", {"edits": 20}, make) == 1
    fresh = RowStore("x", fresh=True)
    assert [fresh.kept("SCR 0", {"edits": 20}, make) for _ in range(2)] == [2, 2]


def test_a_point_is_the_mean_over_seeds_and_forms() -> None:
    (scr, oracle) = points_of([row("SCR", 0.8), row("SCR", 0.2, seed=1), row(ORACLE, 1.0, None)])
    assert (scr["kind"], scr["right"], scr["changed"], scr["edit_s"]) == ("memory", pytest.approx(0.5), 0.0, None)
    assert oracle["kind"] == "" and oracle["changed"] is None


def test_the_scale_of_a_memory_is_that_of_the_retrieval_benchmark() -> None:
    (found,) = scale_of([30])
    assert found["records"] == 30 and found["false_firing"] == 0.0 and min(found["retrieval_ms_p99"], found["start_s"]) > 0
