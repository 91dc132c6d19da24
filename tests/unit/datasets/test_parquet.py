"""Parquet: a round trip, foreign column types, and damage by row, column, page and file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from errata.datasets import parquet
from errata.datasets.reader import read_edits, write_parquet
from errata.edit import Code, Edit, EditRejected, Probe
from errata.testbed.world import World
from tests.unit.datasets.files import EDITS, GOOD, rejection, written


def test_a_round_trip_keeps_the_edits(tmp_path: Path) -> None:
    edits = [
        *World(20).edits("train", 10),
        Edit("a b", "c"),
        Edit("p", "t", portability=(Probe("q", "r", "alias"), Probe("s", "u"))),
    ]
    write_parquet(edits, tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet")) == edits


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
    ({"prompt": "a", "target": "b", "subject": ""}, "subject"),
    ({"prompt": "a", "target": "b", "rephrasings": ["c", ""]}, "rephrasings[1]"),
    ({"prompt": "a", "target": "b", "rephrasings": [None]}, "rephrasings[0]"),
    ({"prompt": "a", "target": "b", "locality": [None]}, "locality[0]"),
    ({"prompt": "a", "target": "b", "portability": [{"prompt": "c", "target": None}]}, "portability[0].target"),
]


@pytest.mark.parametrize(("row", "field"), ROWS)
def test_a_bad_row_is_named_with_its_field(tmp_path: Path, row: dict[str, Any], field: str) -> None:
    nullable = pa.schema([one.with_nullable(True) for one in parquet.SCHEMA])
    pq.write_table(pa.Table.from_pylist([*GOOD, row, GOOD[0]], schema=nullable), tmp_path / "edits.parquet")
    rejected = rejection(tmp_path / "edits.parquet")
    assert (rejected.edit, rejected.field) == (3, field)
    assert list(read_edits(tmp_path / "edits.parquet", on_fault="skip")) == [*EDITS, EDITS[0]]


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


def test_columns_and_objects_have_the_same_faults(tmp_path: Path) -> None:
    """Reading Parquet refuses exactly the edits that `Edit.faults` refuses."""
    texts = ["a b", "", "  ", "a", "\u00a0", "b\x1f", "\x1f"]
    edits = [
        Edit(p, t, s, r) for p in texts for t in texts for s in (None, *texts) for r in ((), ("a",), ("\u2003",), ("", "a"))
    ]
    nullable = pa.schema([one.with_nullable(True) for one in parquet.SCHEMA])
    pq.write_table(pa.Table.from_batches([parquet.batch_of(edits)]).cast(nullable), tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet", on_fault="skip")) == [edit for edit in edits if not list(edit.faults())]


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
