"""The report page of a benchmark."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from errata.benchmark.files import read, write
from errata.benchmark.results import REQUIRED, Answer
from errata.reports.benchmark_answers import Pair, pairs
from errata.reports.write import write_report
from tests.unit.reports.benchmark_rows import a_row, write_rows
from tests.unit.reports.parsed_page import NASTY, Page, check_self_contained


def test_a_benchmark_has_a_page(benchmark: Path, tmp_path: Path) -> None:
    page = Page(write_report(benchmark, tmp_path / "out"))
    check_self_contained(page, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"efficacy", "harmonic_mean", "ppl_ratio", "time", "norm_growth", "pairs-efficacy"} <= names
    assert "Wrong answers of B & C" in page.text and f"{NASTY} is" in page.text
    assert "reward.discount" in page.text and f"bench {NASTY}" in page.text and "a cpu, 2 cores" in page.text
    rows = re.findall(r"<tr data-series=\"(\d)\">\s*<th scope=\"row\">(.*?)</th>", page.source)
    assert rows[0] == ("0", "unedited") and {("1", "A"), ("2", "B &amp; C")} == set(rows[1:3])
    assert {a["data-series"] for a in page.all("g") if "series" in (a.get("class") or "")} == {"0", "1", "2"}


def test_a_benchmark_of_an_earlier_format_has_a_page(benchmark: Path, tmp_path: Path) -> None:
    """Neither answers nor intervals nor report.json."""
    pq.write_table(pq.read_table(benchmark / "rows.parquet").select(REQUIRED), tmp_path / "rows.parquet")
    page = Page(write_report(tmp_path))
    check_self_contained(page, tmp_path / "report")
    assert "This benchmark has no answers.parquet" in page.text and "There is no report.json" in page.text
    assert "A band spans the lowest to the highest seed" in page.text


def test_infinite_values_have_a_page(benchmark: Path, tmp_path: Path) -> None:
    rows = read(benchmark / "rows.parquet")
    infinite = {"ppl_ratio": math.inf, "norm_growth": math.inf}
    broken = [replace(row, values={**row.values, **infinite}) if row.editor == "A" else row for row in rows]
    write(broken, tmp_path, {})
    assert "∞" in Page(write_report(tmp_path)).text


def test_a_benchmark_of_the_unedited_model_alone_has_a_page(tmp_path: Path) -> None:
    write_rows(tmp_path, [a_row()])
    (tmp_path / "report.json").write_text(json.dumps({"suite": "lifelong"}))
    page = Page(write_report(tmp_path))
    assert "Benchmark report: lifelong" in page.text and "needs the answers of two editors" in page.text


def test_pairs_count_the_questions_that_both_were_asked() -> None:
    def answers_by(editor: str, right: str) -> Iterator[Answer]:
        return (Answer(editor, 0, 4, "efficacy", f"p{i}", "w", "", mark == "1") for i, mark in enumerate(right))

    answers = [*answers_by("A", "1100"), *answers_by("B", "10101"), Answer("A", 0, 4, "locality", "p0", "w", "", True)]
    (pair,) = pairs(answers, "efficacy", ["A", "B"])
    assert pair == Pair("A", "B", both=1, only_first=1, only_second=1, neither=1)
    assert pairs(answers, "locality", ["A", "B"]) == []
    assert Pair("A", "B", 5, 9, 1, 0).p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert Pair("A", "B", 5, 0, 0, 2).p_value == 1.0
