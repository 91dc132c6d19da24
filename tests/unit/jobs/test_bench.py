"""Cached runs of the benchmark: their rows and answers are read, not computed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.model.language_model import LanguageModel
from errata.testbed.language_model import Shape
from errata.testbed.world import World
from jobs.bench import SuiteRun
from jobs.suites import Suite


def test_cached_rows_and_answers_are_read(tiny_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    suite = Suite("cached", World(20), Shape(), (), num_edits=6, num_validation=3, batch_size=3)
    first = SuiteRun(suite, tiny_model)
    rows = first.rows("unedited", None, "test", 0)
    assert first.answered and {answer.edits for answer in first.answered} == {6}

    def play(*_: object) -> None:
        pytest.fail("a cached run is computed again")

    monkeypatch.setattr("jobs.bench.run", play)
    again = SuiteRun(suite, tiny_model)
    assert again.rows("unedited", None, "test", 0) == rows and again.answered == first.answered
    renamed = SuiteRun(suite, tiny_model)
    assert renamed.rows("renamed", None, "test", 0)[-1].editor == "renamed"
    assert {answer.editor for answer in renamed.answered} == {"renamed"}


def test_a_validation_stream_keeps_no_answers(
    tiny_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    bench = SuiteRun(Suite("cached", World(20), Shape(), (), num_validation=3), tiny_model)
    for _ in range(2):
        assert bench.rows("unedited", None, "validation", 0)[-1].edits == 3
    assert bench.answered == [] and not list(tmp_path.rglob("*.parquet"))
