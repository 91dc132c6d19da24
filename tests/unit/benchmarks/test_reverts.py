"""Means over the trials of the benchmark of reverts."""

from __future__ import annotations

from benchmarks.reverts import averaged


def test_means_leave_out_missing_measurements():
    rows = [{"ms": 1.0, "same_bits": None, "no": None}, {"ms": 4.0, "same_bits": 1.0, "no": None}]
    assert averaged(rows) == {"trials": 2, "ms": 2.5, "same_bits": 1.0, "no": None}
