"""Parquet: a round trip, foreign column types, and damage by row, column, page and file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from errata.datasets import parquet
from errata.datasets.reader import read_edits, write_parquet
from errata.datasets.skip_report import SkipReport
from errata.edit import Code, Edit, EditRejected, Probe
from errata.testbed.world import World
from errata.text.rules import text_fault
from tests.unit.datasets.files import EDITS, GOOD, lines, rejection, written


def test_a_round_trip_keeps_the_edits(tmp_path: Path) -> None:
    edits = [
        *World(20).edits("train", 10),
        Edit("a b", "c"),
        Edit("p", "t", portability=(Probe("q", "r", "alias"), Probe("s", "u"))),
        Edit("p", "t", locality=(Probe("q", "USA", aliases=("United States", "America")), Probe("s", "u"))),
        Edit("p", "t", source="https://a.example", valid_from="2019-01-01", valid_to="2020-01-01", reason="It moved."),
        Edit("p", "t", valid_from="2019-01-01"),
    ]
    write_parquet(edits, tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet")) == edits


def test_a_row_with_a_wrong_day_is_named(tmp_path: Path) -> None:
    table = {"prompt": ["a", "b"], "target": ["c", "d"], "valid_from": ["2019-01-01", "2019-01-32"], "reason": [None, "r"]}
    pq.write_table(pa.table(table), tmp_path / "edits.parquet")
    written(tmp_path / "edits.jsonl", lines(pa.table(table).to_pylist()))
    for file in (tmp_path / "edits.parquet", tmp_path / "edits.jsonl"):
        rejected = rejection(file)
        assert (rejected.edit, rejected.field, rejected.code) == (1, "valid_from", Code.INVALID_DATE)
        assert list(read_edits(file, on_fault="skip")) == [Edit("a", "c", valid_from="2019-01-01")]


def test_a_parquet_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    write_parquet(EDITS * 1000, tmp_path / "edits.parquet")
    content = (tmp_path / "edits.parquet").read_bytes()
    assert "damaged or not whole" in rejection(written(tmp_path / "short.parquet", content[:-50])).reason


def test_damaged_pages_are_named_with_the_record_they_begin_at(tmp_path: Path) -> None:
    edits = [Edit(f"prompt {number}", f"target {number}") for number in range(20_000)]
    write_parquet(edits, tmp_path / "edits.parquet")
    content = bytearray((tmp_path / "edits.parquet").read_bytes())
    column = pq.ParquetFile(tmp_path / "edits.parquet").metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    rejected = rejection(written(tmp_path / "bad.parquet", bytes(content)), on_fault="skip")
    assert "damaged from here on" in rejected.reason and rejected.edit == 16384


@pytest.mark.parametrize(
    ("table", "field", "reason"),
    [
        ({"prompt": [1], "target": ["a"]}, "prompt", "must be of string, not of int64"),
        ({"prompt": ["a"]}, "target", "is missing"),
        ({"prompt": ["a"], "target": ["b"], "surprise": ["c"]}, "surprise", "is not a column"),
        ({"prompt": ["a"], "target": ["b"], "rephrasings": ["c"]}, "rephrasings", "must be of list"),
        ({"prompt": ["a"], "target": ["b"], "locality": [[{"prompt": "c"}]]}, "locality", "must be of list"),
    ],
)
def test_a_wrong_column_is_named(tmp_path: Path, table: dict[str, list], field: str, reason: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "edits.parquet")
    rejected = rejection(tmp_path / "edits.parquet", on_fault="skip")
    assert rejected.field == field and reason in rejected.reason


ROWS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None, "target": "b"}, "prompt"),
    ({"prompt": " ", "target": "b"}, "prompt"),
    ({"prompt": "a", "target": ""}, "target"),
    ({"prompt": "a", "target": "b", "subject": "c"}, "subject"),
]
# Optional values at fault, and under which name they are counted.
LEFT_OUT: list[tuple[dict[str, Any], str]] = [
    ({"subject": ""}, "subject"),
    ({"rephrasings": ["c", ""]}, "rephrasings[]"),
    ({"rephrasings": [None, "c"]}, "rephrasings[]"),
    ({"rephrasings": ["c"], "locality": [None]}, "locality[]"),
    ({"rephrasings": ["c"], "locality": [{"prompt": "c {}", "target": "d", "aliases": ["e"]}]}, "locality[].prompt"),
    ({"rephrasings": ["c"], "portability": [{"prompt": "c", "target": None}]}, "portability[].target"),
    ({"rephrasings": ["c"], "portability": [{"prompt": "c {}", "target": "d"}]}, "portability[].prompt"),
]


@pytest.mark.parametrize(("row", "field"), ROWS)
def test_a_bad_row_is_named_with_its_field(tmp_path: Path, row: dict[str, Any], field: str) -> None:
    nullable = pa.schema([one.with_nullable(True) for one in parquet.SCHEMA])
    pq.write_table(pa.Table.from_pylist([*GOOD, row, GOOD[0]], schema=nullable), tmp_path / "edits.parquet")
    rejected = rejection(tmp_path / "edits.parquet")
    assert (rejected.edit, rejected.field) == (3, field)
    assert list(read_edits(tmp_path / "edits.parquet", on_fault="skip")) == [*EDITS, EDITS[0]]


@pytest.mark.parametrize(("values", "counted"), LEFT_OUT)
def test_an_optional_value_at_fault_is_left_out_of_its_row(tmp_path: Path, values: dict[str, Any], counted: str) -> None:
    row = {"prompt": "a", "target": " b ", **values}
    pq.write_table(pa.Table.from_pylist([*GOOD, row], schema=parquet.SCHEMA), tmp_path / "edits.parquet")
    skip_report = SkipReport()
    expected = Edit("a", "b", rephrasings=("c",) if "rephrasings" in values else ())
    assert list(read_edits(tmp_path / "edits.parquet", skip_report=skip_report)) == [*EDITS, expected]
    assert [(reason.partition(" (")[2], count) for reason, count in skip_report.left_out.items()] == [(f"{counted})", 1)]
    assert "edit 3, " in skip_report.report()


def test_columns_of_numbers_and_the_index_of_pandas(tmp_path: Path) -> None:
    table = {"prompt": ["a 7", "b 8"], "target": [1889, 1890], "subject": [7, 8], "id": [1, 2], "__index_level_0__": [4, 2]}
    pq.write_table(pa.table(table), tmp_path / "edits.parquet")
    skip_report = SkipReport()
    edits = list(read_edits(tmp_path / "edits.parquet", skip_report=skip_report))
    assert edits == [Edit("a 7", "1889", "7", id="1"), Edit("b 8", "1890", "8", id="2")]
    assert skip_report.left_out == {"unknown_field (__index_level_0__)": 2}
    pq.write_table(pa.table({"prompt": ["a"], "target": [1.5]}), tmp_path / "edits.parquet")
    assert "not of double; convert it to text" in rejection(tmp_path / "edits.parquet").reason
    pq.write_table(pa.table({"prompt": ["a"], "target": ["b"], "rephrase": [7]}), tmp_path / "edits.parquet")
    assert rejection(tmp_path / "edits.parquet").field == "rephrase"


def test_a_misspelt_column_is_named_with_the_right_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "target": ["b"], "rephrasing": [["c"]]}), tmp_path / "edits.parquet")
    assert "rename rephrasing to rephrasings" in rejection(tmp_path / "edits.parquet").reason


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    prompts = pa.array([b"good", b"b\xffd", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": prompts, "target": ["a", "b", "c"]}), tmp_path / "edits.parquet")
    rejected = rejection(tmp_path / "edits.parquet")
    assert (rejected.edit, rejected.field) == (1, "prompt") and "UTF8" in rejected.reason
    assert [edit.prompt for edit in read_edits(tmp_path / "edits.parquet", on_fault="skip")] == ["good", "fine"]


def test_a_row_of_another_format_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    prompts = pa.array([b"good", b"b\xffd", b"fine"], pa.binary()).view(pa.string())
    table = {"src": prompts, "subject": ["good", "b", "fine"], "answers": [["a"]] * 3, "rephrase": ["r"] * 3}
    pq.write_table(pa.table(table), tmp_path / "edits.parquet")
    rejected = rejection(tmp_path / "edits.parquet")
    assert (rejected.edit, rejected.field) == (1, "src")
    assert [edit.prompt for edit in read_edits(tmp_path / "edits.parquet", on_fault="skip")] == ["good", "fine"]


def test_every_character_that_is_refused_somewhere_makes_a_row_suspect() -> None:
    last = [plane + code for plane in range(0, sys.maxunicode, 0x10000) for code in (0xFFFD, 0xFFFE, 0xFFFF)]
    texts = [f"a{chr(code)}b" for code in (*range(0x3000), *range(0xF900, 0xFFFD), *range(0xE0000, 0xE0200), *last)]
    is_good = parquet._are_texts(pa.array(texts)).to_pylist()
    assert not [text for text, good in zip(texts, is_good, strict=True) if good and text_fault(text) is not None]
    assert parquet._are_texts(pa.array(["", "á"])).to_pylist() == [False, True]


@pytest.mark.parametrize("absent_subject", ["refuse", "drop"])
def test_columns_and_objects_are_read_alike(tmp_path: Path, absent_subject: Any) -> None:
    """Parquet and JSON lines give the same edits, refusals and omissions."""
    texts = ["a b", "", "  ", "a", "\u00a0", "b\x1f", "\x1f", "e\u0301", "\ufeffa", "a\u202eb", "{} b"]
    probes = [(), (Probe("q", "r"),), (Probe("q", " r"), Probe("{}", "r")), (Probe("q", "e\u0301"),)]
    edits = [
        Edit(prompt, target, subject, rephrasings, probes[number % len(probes)])
        for number, (prompt, target, subject, rephrasings) in enumerate(
            product(texts, texts, (None, *texts), ((), ("a",), ("\u2003",), ("", "a {}")))
        )
    ]
    nullable = pa.schema([one.with_nullable(True) for one in parquet.SCHEMA])
    pq.write_table(pa.Table.from_batches([parquet.batch_of(edits)]).cast(nullable), tmp_path / "edits.parquet")
    written(tmp_path / "edits.jsonl", lines([edit.to_json() for edit in edits]))
    read = {}
    for name in ("edits.parquet", "edits.jsonl"):
        report = SkipReport()
        found = list(read_edits(tmp_path / name, on_fault="skip", absent_subject=absent_subject, skip_report=report))
        assert not any(list(edit.faults()) for edit in found)
        read[name] = found, report.skipped, report.left_out
    assert read["edits.parquet"] == read["edits.jsonl"]


def test_aliases_and_answers_at_fault_are_read_alike(tmp_path: Path) -> None:
    texts = [None, "", " ", "a", " a\u00a0", "A.", "b", "\x07a"]
    rows = [
        {"prompt": "p", "target": "a", "aliases": [alias, "b"], "answer": answer, "form": form}
        for alias, answer, form in product(texts, texts, (None, "chat", "both"))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=parquet.SCHEMA), tmp_path / "edits.parquet")
    written(tmp_path / "edits.jsonl", lines([parquet.without_nulls(row) | {"aliases": row["aliases"]} for row in rows]))
    read = {}
    for name in ("edits.parquet", "edits.jsonl"):
        report = SkipReport()
        found = list(read_edits(tmp_path / name, on_fault="skip", skip_report=report))
        assert found and not any(list(edit.faults()) for edit in found)
        read[name] = found, report.skipped, report.left_out
    assert read["edits.parquet"] == read["edits.jsonl"]
    assert Edit("p", "a", form="chat", aliases=("a", "b"), answer="a") in read["edits.parquet"][0]
    assert {"empty_field (aliases[])", "empty_field (answer)"} == set(read["edits.parquet"][2])
    skipped = read["edits.parquet"][1]
    assert set(skipped) == {"not_text (aliases)", "not_text (answer)", "invalid_value (answer)"}


def test_a_file_with_answers_alone_says_what_to_rename(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), tmp_path / "edits.parquet")
    rejected = rejection(tmp_path / "edits.parquet")
    assert rejected.field == "target" and "rename answer to target" in rejected.reason


def test_foreign_column_types_are_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "target": pa.array(["c", "e", "h"]).dictionary_encode(),
            "prompt": pa.array(["a b", "d", "g"], pa.large_string()),
            "subject": pa.nulls(3),
            "rephrasings": pa.array([None, ["f"], []], pa.large_list(pa.large_string())),
            "locality": pa.array([[], None, [{"target": "y", "prompt": "x"}]]),
        }
    )
    pq.write_table(table, tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet")) == [*EDITS[:2], Edit("g", "h", locality=(Probe("x", "y"),))]


def test_another_format_in_parquet_is_converted(tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "data" / "formats"
    for name in ("knowedit", "mquake", "wikibigedit", "counterfact"):
        records = json.loads((data / f"{name}.json").read_text())
        records = records[1:] if name == "knowedit" else records  # the first has one field once as a list and once as a string
        pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{name}.parquet")
        written(tmp_path / f"{name}.json", json.dumps(records))
        assert list(read_edits(tmp_path / f"{name}.parquet")) == list(read_edits(tmp_path / f"{name}.json"))


def test_no_file_is_left_when_the_edits_end_in_an_error(tmp_path: Path) -> None:
    def broken() -> Iterator[Edit]:
        yield from EDITS
        raise EditRejected("no more", code=Code.EDITOR_FAILED)

    with pytest.raises(EditRejected):
        write_parquet(broken(), tmp_path / "edits.parquet")
    assert list(tmp_path.iterdir()) == []
