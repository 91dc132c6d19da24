"""The retrieval benchmark at a tiny size: what its report says of records that are found and of those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.retrieval import RetrievalSettings, invented, run


def test_the_report_has_recall_false_firing_and_milliseconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    path = run(RetrievalSettings(sizes=(20, 60), num_facts=40, num_timed=10), "a command")
    report = json.loads(path.read_text())
    assert path == tmp_path / "bench-retrieval" / "report.json" and report["command"] == "a command"
    given, found, rephrased = report["scores"]
    assert rephrased["posted"] == 3 and rephrased["recall_1"] == rephrased["recall_2"] == 1.0 > given["recall_2"]
    kinds = [(row["wordings"], row["posted"]) for row in report["relations"]]
    assert kinds == [(wordings, posted) for wordings in ("tuned", "held out") for posted in (1, 3)]
    assert all(more["recall"] > one["recall"] for one, more in zip(*[iter(report["relations"])] * 2, strict=True))
    assert given["num_records"] == found["num_records"] == 40
    assert given["recall_0"] == 1.0 and report["recall"] == given["recall_3"] > 0.9
    assert report["false_firing"] == given["false_neighbours"] < 0.05 and given["false_continent_of_city"] == 0.0
    assert [(row["num_records"], row["subjects"]) for row in report["rows"]] == [
        (size, kind) for kind in ("given", "none") for size in (20, 60)
    ]
    assert all(0 < row["retrieval_ms_p50"] <= row["retrieval_ms_p99"] for row in report["rows"])
    tables = [(row["num_records"], row["vectors"]) for row in report["searches"]]
    assert tables == [(size, vectors) for vectors in ("drawn", "around questions") for size in (20, 60)]
    assert all(0 < row["search_ms_p50"] <= row["search_ms_p99"] for row in report["searches"])


def test_invented_names_differ() -> None:
    assert len(set(invented(500, 0))) == 500
