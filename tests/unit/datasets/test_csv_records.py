"""CSV: lists as JSON in cells, rows of several lines, and damage by row and file."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.datasets.csv_lines import MAX_CELL_LINES, MAX_ROW_LINES
from errata.datasets.reader import read_edits
from errata.datasets.skip_report import SkipReport
from errata.edit import Edit, EditRejected, Probe
from tests.unit.datasets.files import EDITS, rejection, written


def test_cells_have_json_lists_and_quoted_line_ends() -> None:
    data = Path(__file__).parents[2] / "data" / "formats"
    first, second = read_edits(data / "plain.csv")
    assert first.rephrasings == ("Where Zoë Arden is from, people speak",)
    assert first.locality == (Probe("Émile Orr is a native speaker of", "Türkçe"),)
    assert second == Edit("The river of Tal\nflows into", "the North Lake")


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (b"x,y", "has 2 cells where the header has 3", None),
        (b"x,y,,z", "has 4 cells where the header has 3", None),
        (b"x,,", "is empty", "target"),
        (b"x,y,[1", "not a JSON list", "rephrasings"),
        (b"x,y,7", "must be a list of strings, not a number", "rephrasings"),
        (b"\xff,y,", "not UTF-8 text", None),
        (b'"x" y,z,', "not CSV", None),
        (b"a" * 3_000_000 + b",y,", "longer than 1,000,000 bytes", None),
    ],
    ids=["short", "ragged", "empty", "list", "number", "encoding", "quotes", "long"],
)
def test_a_bad_row_of_csv_stops_or_is_skipped(tmp_path: Path, row: bytes, reason: str, field: str | None) -> None:
    path = written(tmp_path / "edits.csv", b'prompt,target,rephrasings\na b,c,\n%s\nd,e,"[""f""]"\ng,h,\n' % row)
    rejected = rejection(path, max_record_bytes=1_000_000)
    assert rejected.edit == 1 and reason in rejected.reason and rejected.field == field
    skip_report = SkipReport()
    assert list(read_edits(path, max_record_bytes=1_000_000, on_fault="skip", skip_report=skip_report)) == EDITS
    assert skip_report.num_skipped == 1


@pytest.mark.parametrize("on_fault", ["stop", "skip"])
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({99: '"a99,b'}, f"line 101 has no end within {MAX_CELL_LINES} lines"),
        ({99: '"a99,b', 199: 'x",b'}, f"line 101 has no end within {MAX_CELL_LINES} lines"),
        ({99: '"two\nlines","b'}, f"line 102 has no end within {MAX_CELL_LINES} lines"),
        ({99: '"a99,b', 120: '"a","b"'}, "line 101 is not closed as CSV does it in line 122"),
        ({999: '"a,b'}, "line 1,001 has no end in the file"),
    ],
    ids=["open", "closed-far-away", "second-cell", "not-closed-well", "last-line"],
)
def test_an_open_quote_always_stops(tmp_path: Path, rows: dict[int, str], reason: str, on_fault: str) -> None:
    content = "".join(f"{rows.get(number, f'a{number},b')}\n" for number in range(1000))
    path = written(tmp_path / "edits.csv", "prompt,target\n" + content)
    found: list[Edit] = []
    with pytest.raises(EditRejected) as rejected:
        found.extend(read_edits(path, on_fault=on_fault))  # type: ignore[arg-type]
    assert reason in rejected.value.reason and "(edits.csv)" in rejected.value.reason
    assert rejected.value.edit == min(rows)


def test_the_lines_of_a_cell_are_bounded(tmp_path: Path) -> None:
    most = "\n".join(["x"] * MAX_CELL_LINES)
    content = f'prompt,target\n"{most}","{most}"\nc,d\n'
    assert list(read_edits(written(tmp_path / "edits.csv", content))) == [Edit(most, most), Edit("c", "d")]
    more = content.replace(f'"{most}",', f'"{most}\nx",')
    assert rejection(written(tmp_path / "edits.csv", more), on_fault="skip").edit == 0


def test_the_lines_of_a_row_are_bounded(tmp_path: Path) -> None:
    path = written(tmp_path / "edits.csv", 'prompt,target\n"a\n' + '","\n' * MAX_ROW_LINES)
    assert "is of a row that has no end" in rejection(path, on_fault="skip").reason


@pytest.mark.parametrize(("separator", "other"), [("\t", ";"), (";", "\t")], ids=["tabs", "semicolons"])
def test_other_separators_are_read(tmp_path: Path, separator: str, other: str) -> None:
    rows = [["prompt", "target", "rephrasings"], ['"a, b"', f"c{other}d", '"[""e""]"'], ["f", '"g\nh"', ""]]
    path = written(tmp_path / "edits.tsv", "\r\n".join(separator.join(row) for row in rows))
    assert list(read_edits(path)) == [Edit("a, b", f"c{other}d", rephrasings=("e",)), Edit("f", "g\nh")]
    path = written(
        tmp_path / "open.tsv", separator.join(["prompt", "target"]) + f'\na{separator}"b\n' + f"c{separator}d\n" * 99
    )
    assert "the quote opened in line 2" in rejection(path, on_fault="skip").reason
    assert rejection(written(tmp_path / "few.tsv", f"prompt{separator}target\na,b\n")).edit == 0


@pytest.mark.parametrize("header", [",prompt,target", "Unnamed: 0,prompt,target", "Unnamed: 0.1,Unnamed: 0,,prompt,target"])
def test_the_index_of_pandas_is_ignored_and_counted(tmp_path: Path, header: str) -> None:
    start = "0," * (header.count(",") - 1)
    path = written(tmp_path / "edits.csv", f"{header}\n{start}a,b\n{start}c,d\n{start}e,\n")
    skip_report = SkipReport()
    assert list(read_edits(path, on_fault="skip", skip_report=skip_report)) == [Edit("a", "b"), Edit("c", "d")]
    assert skip_report.left_out == {"unknown_field (unnamed)": 2} and skip_report.num_skipped == 1


@pytest.mark.parametrize(
    "header", ["prompt,prompt", "prompt,,target", '"prompt', "prompt"], ids=["twice", "unnamed", "open", "one"]
)
def test_a_bad_csv_header_always_stops(tmp_path: Path, header: str) -> None:
    assert "CSV" in rejection(written(tmp_path / "edits.csv", header + "\na,b\n"), on_fault="skip").reason
