"""The targets benchmark at a tiny size: its report, and that both ways find the same targets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.targets import SEARCH, TargetsSettings, run


def test_the_report_has_the_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    search = replace(SEARCH, num_steps=3)
    path = run(TargetsSettings((1, 4), ((32, 2, 48),), repeats=1, search=search, num_subjects=20), "a command")
    report = json.loads(path.read_text())
    assert path == tmp_path / "bench-targets" / "report.json" and report["command"] == "a command"
    assert [(row["written_at"], row["num_edits"]) for row in report["rows"]] == [
        (position, count) for position in ("subject", "prompt") for count in (1, 4)
    ]
    for row in report["rows"]:
        assert row["ratio_one"] == pytest.approx(row["ms_an_edit_one"] / row["ms_an_edit_batch"])
        assert row["difference"] < 1e-3
