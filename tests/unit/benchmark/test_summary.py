"""Summaries over seeds, and their tables."""

from dataclasses import replace

import pytest

from errata.benchmark.run import UNEDITED, BenchmarkedEditor, run
from errata.benchmark.stream import BenchmarkStream
from errata.benchmark.summary import summarise
from errata.benchmark.tables import markdown
from errata.model.language_model import LanguageModel


def test_a_summary_is_mean_and_range_over_seeds(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    row = run(tiny_model, BenchmarkedEditor(UNEDITED, None), stream)[-1]
    rows = [
        replace(row, editor="a", seed=seed, values={**row.values, "efficacy": value})
        for seed, value in enumerate((0.2, 0.4, 0.9))
    ]
    (one,) = summarise(rows)
    summary = one.measures["efficacy"]
    assert summary is not None and (summary.min, summary.max) == (0.2, 0.9) and summary.mean == pytest.approx(0.5)
    assert one.seeds == (0, 1, 2) and "0.500 (0.200–0.900)" in markdown([one])
    assert summarise(rows, edits=7) == []
