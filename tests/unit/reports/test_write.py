"""Messages of `errata report` for folders that it cannot read or write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from errata.ledger import Ledger
from tests.unit.reports.benchmark_rows import a_row, write_rows
from tests.unit.reports.parsed_page import report


def damaged_ledger(folder: Path) -> None:
    Ledger.create(folder, {"model": "m", "fingerprint": "f", "matrices": ["w"]})
    (folder / "versions" / "00000001").mkdir()
    (folder / "versions" / "00000001" / "entry.json").write_text('{"number": 1,')


def rows_with(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "rows.parquet").write_bytes(text) and None


def lacking(folder: Path) -> None:
    pq.write_table(pa.table({"editor": ["A"], "seed": [0]}), folder / "rows.parquet")


def no_rows(folder: Path) -> None:
    write_rows(folder, [])


def bad_meta(folder: Path) -> None:
    write_rows(folder, [a_row()])
    (folder / "report.json").write_text('{"command": ')


def list_for_meta(folder: Path) -> None:
    write_rows(folder, [a_row()])
    (folder / "report.json").write_text("[]")


def bad_answers(folder: Path) -> None:
    write_rows(folder, [a_row()])
    (folder / "answers.parquet").write_bytes(b"PAR1 and no more")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder.rmdir(), "there is no folder"),
        (lambda folder: None, "is neither a ledger (no versions/00000000) nor the folder of a benchmark (no rows.parquet)"),
        (lambda folder: damaged_ledger(folder / "ledger"), "ledger?"),
        (damaged_ledger, "version 1 is damaged"),
        (rows_with(b"PAR1 and no more"), "rows.parquet cannot be read, it may be damaged"),
        (rows_with(b""), "rows.parquet cannot be read, it may be damaged"),
        (lacking, "rows.parquet lacks the columns edits, efficacy"),
        (no_rows, "rows.parquet has no rows"),
        (bad_meta, "report.json cannot be read, it may be damaged"),
        (list_for_meta, "report.json is not a benchmark's report"),
        (bad_answers, "answers.parquet cannot be read, it may be damaged"),
    ],
)
def test_bad_input_is_named(make: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    make(folder)
    done = report(folder, "--out", out)
    assert done.exit_code == 1 and says in done.output, done.output
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_named(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = report(ledger.directory, "--out", tmp_path / "file" / "[red]out")
    assert done.exit_code == 1 and f"{tmp_path}/file/[red]out" in done.output
