"""Skipped records counted by code and field."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from errata.datasets.reader import read_edits
from errata.datasets.skip_report import MAX_REASONS, OTHER_REASONS, SkipReport
from errata.edit import Code, EditRejected
from tests.unit.datasets.files import EDITS, GOOD, lines, written


def test_skipped_records_are_counted_by_reason_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [{"prompt": f"p {i}", "target": "t", "subject": f"it's {i}"} for i in range(5)] + [{"prompt": "p", "target": ""}]
    path = written(tmp_path / "edits.jsonl", lines([*GOOD, *bad]))
    skip_report = SkipReport()
    with caplog.at_level(logging.WARNING):
        assert list(read_edits(path, on_fault="skip", skip_report=skip_report)) == EDITS
    assert skip_report.num_skipped == 6
    assert skip_report.skipped == {"subject_not_in_prompt (subject)": 5, "empty_field (target)": 1}
    assert all(len(examples) <= 3 for examples in skip_report.examples.values())
    assert "5 × subject_not_in_prompt (subject)\n    edit 3, subject: " in skip_report.report()
    assert skip_report.report() in caplog.text


def test_elements_of_one_list_are_one_reason() -> None:
    skip_report = SkipReport()
    for index in (1, 2, 30):
        skip_report.skip(EditRejected(f"is no text {index}", field=f"rephrasings[{index}]", code=Code.NOT_TEXT))
    assert skip_report.report().splitlines() == [
        "skipped 3 records",
        "  3 × not_text (rephrasings[])",
        *(f"    rephrasings[{index}]: is no text {index}" for index in (1, 2, 30)),
    ]


def test_the_number_of_reasons_is_bounded() -> None:
    skip_report = SkipReport()
    for number in range(1000):
        skip_report.skip(EditRejected("is wrong", field="x" * number, code=Code.WRONG_TYPE))
    assert skip_report.num_skipped == 1000 and len(skip_report.skipped) == len(skip_report.examples) == MAX_REASONS + 1
    assert skip_report.skipped[OTHER_REASONS] == 1000 - MAX_REASONS
