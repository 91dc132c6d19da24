"""The comparison of editors on true facts: its arguments, rows that are left out, and how an interrupted run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import facts
from benchmarks.facts import Comparison, FactsSettings, read, run
from benchmarks.facts_rows import ORACLE, UNEDITED, EditorRow, bare, rows_of
from benchmarks.facts_run import RowRun
from benchmarks.facts_store import RowStore
from tests.unit.jobs.test_demo_answers import FACTS, edit_of

FIGURES: dict[str, Any] = {
    **dict.fromkeys(("question", "phrasing", "other_system", "second_turn"), 0.5),
    "agreement": 1.0,
    "edit_s": 0.1,
    "added_ms": 5.0,
    "half_life": float("inf"),
}


def test_rows_are_chosen_by_name_and_the_unedited_model_is_the_first() -> None:
    chosen = read(["bench-facts", "--edits=20", f"--rows=FT-L,{ORACLE}"])
    assert chosen.rows == (UNEDITED, "FT-L", ORACLE) and chosen.edits == 20 and not chosen.re_edits
    with pytest.raises(ValueError, match="no row is named MEND; there are unedited, oracle, RLEdit, AlphaEdit"):
        read(["bench-facts", "--rows=FT-L, MEND"])
    with pytest.raises(ValueError, match="at least 10"):
        read(["bench-facts", "--edits=9"])
    with pytest.raises(ValueError, match=r"--artifact is EDITOR=FOLDER.*SERAC=nowhere"):
        read(["bench-memory-editors", "--artifact", "SERAC=nowhere"])


def test_the_long_run_of_the_headline_table_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(["bench-real"]).edits == 60
    monkeypatch.setenv("FULL", "1")
    real = read(["bench-real", "--scale=0"])
    assert read(["bench-real", "--seeds=0"]).seeds == (0,) and read(["bench-real", "--scale=0,50"]).scale == (50,)
    assert (real.edits, real.re_edits, real.seeds, real.repeated, real.has_more_forms) == (1000, 0.1, (0, 1, 2), 5, True)
    assert real.rows[:2] == (UNEDITED, ORACLE) and len(set(real.rows)) == len(real.rows) and real.scale == ()


def test_a_row_without_its_artifact_or_its_editor_says_so(tmp_path: Path) -> None:
    serac, recipe = rows_of(("SERAC", "RECIPE"), {"RECIPE": str(tmp_path)})
    assert "--artifact SERAC=FOLDER" in serac.missing and not serac.makes
    assert not recipe.missing and len(recipe.makes) == 1


def test_a_bare_target_is_the_whole_answer() -> None:
    assert [edit.answer for edit in bare([edit_of(FACTS[0])])] == ["India"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Replace what needs a model; return the names of the rows that are measured."""
    made: list[str] = []

    def figures(row_run: RowRun, _editor: Any) -> dict[str, Any]:
        made.append(row_run.row.name)
        if made.count("SCR") == 1 and row_run.row.name == "SCR":
            raise KeyboardInterrupt
        if row_run.row.name == "FT-L":
            raise ValueError("the matrix is not there")
        return FIGURES

    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr(RowRun, "figures", figures)
    monkeypatch.setattr(Comparison, "stream", lambda *_: (None, None))
    monkeypatch.setattr(Comparison, "chosen", lambda *_: (None, 3))
    monkeypatch.setattr(facts, "settings_of", lambda _editor: {})
    for name in ("model", "unedited", "fingerprint"):
        monkeypatch.setattr(Comparison, name, name)
    monkeypatch.setattr(facts, "set_threads", lambda: None)
    return made


def test_an_interrupted_run_goes_on_with_the_rows_that_are_missing(measured: list[str], tmp_path: Path) -> None:
    settings = FactsSettings("bench-x", (UNEDITED, ORACLE, "SCR", "FT-L", "SERAC"), 10)
    with pytest.raises(KeyboardInterrupt):
        run(settings, "a command")
    partial = json.loads((tmp_path / "bench-x" / "report.json").read_text())
    assert [row["editor"] for row in partial["rows"]] == [UNEDITED, ORACLE], "what is measured is on the disk"
    report = json.loads(run(settings, "a command").read_text())
    assert measured == [UNEDITED, ORACLE, "SCR", "SCR", "FT-L"]
    assert [row["editor"] for row in report["rows"]] == [UNEDITED, ORACLE, "SCR"]
    assert "SERAC=FOLDER" in report["skipped"]["SERAC"] and report["skipped"]["FT-L"] == "the matrix is not there"
    assert report["rows"][2] | {"trials": 3, "edits": 10, "seed": 0, "half_life": None} == report["rows"][2]
    assert report["not_finite"] == [[i, "half_life"] for i in range(3)] and report["command"] == "a command"
    assert (tmp_path / "bench-x" / "scores.png").exists()


def test_the_first_rows_have_every_seed(measured: list[str]) -> None:
    settings = FactsSettings("bench-x", (UNEDITED, ORACLE, "answer"), 10, seeds=(0, 1), repeated=2)
    report = json.loads(run(settings, "a command").read_text())
    assert [(row["editor"], row["seed"]) for row in report["rows"]] == [
        (UNEDITED, 0),
        (ORACLE, 0),
        ("answer", 0),
        (UNEDITED, 1),
        (ORACLE, 1),
    ]


def test_the_best_setting_on_training_facts_is_chosen_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    asked: list[str] = []

    def validation(_run: RowRun, editor: Any) -> float:
        asked.append(editor)
        return {"first": 0.2, "second": 0.7, "third": 0.7}[editor]

    monkeypatch.setattr(RowRun, "validation", validation)
    monkeypatch.setattr(facts, "settings_of", str)
    for name in ("model", "unedited", "fingerprint", "search"):
        monkeypatch.setattr(Comparison, name, (None, None) if name == "search" else name)
    row = EditorRow("FT-L", tuple(lambda _model, name=name: name for name in ("first", "second", "third")))  # type: ignore[misc]
    for _ in range(2):
        comparison = Comparison(FactsSettings("bench-y", (UNEDITED,), 10), RowStore("bench-y"))
        assert comparison.chosen(row) == ("second", 3)
    assert asked == ["first", "second", "third"], "the second run reads the scores"
    only = EditorRow("RLEdit", (lambda _model: "shipped",), trials=9)  # type: ignore[arg-type, return-value]
    assert comparison.chosen(only) == ("shipped", 9)
