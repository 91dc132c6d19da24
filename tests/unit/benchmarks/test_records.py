"""The benchmark of streams on a few thousand edits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.records import RecordsSettings, invented, run


def test_a_small_run_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    report = json.loads(run(RecordsSettings(num_edits=3_000, num_json=1_000, repeats=1), "make bench-stream").read_text())
    assert report["records_per_s"] > 0 and 10 < report["peak_rss_mb"] < 500
    assert [row["num_edits"] for row in report["rows"]] == [3_000, 3_000, 1_000]
    assert {"command", "seed", "hardware"} <= set(report)


def test_invented_edits_are_valid_and_the_same_for_a_seed() -> None:
    edits = list(invented(500, 1))
    assert edits == list(invented(500, 1)) != list(invented(500, 2))
    assert not [fault for edit in edits for fault in edit.faults()]
    assert len({edit.prompt for edit in edits}) == 500
