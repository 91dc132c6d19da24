"""Edits from files of every kind, whole and damaged, from several kinds of place, and into Parquet."""

from __future__ import annotations

import gzip
import io
import json
import logging
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from errata.datasets import parquet
from errata.datasets.csv_lines import MAX_CELL_LINES, MAX_ROW_LINES
from errata.datasets.reader import read_edits, write_parquet
from errata.datasets.records import records_of
from errata.datasets.skip_report import MAX_REASONS, SkipReport
from errata.edit import Code, Edit, EditRejected, Probe, batches_of
from errata.testbed.world import World

GOOD = [{"prompt": "a b", "target": "c"}, {"prompt": "d", "target": "e", "rephrasings": ["f"]}, {"prompt": "g", "target": "h"}]
EDITS = [Edit("a b", "c"), Edit("d", "e", rephrasings=("f",)), Edit("g", "h")]


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rejection(path: Path, **how: Any) -> EditRejected:
    with pytest.raises(EditRejected) as rejected:
        list(read_edits(path, **how))
    assert f"({path.name})" in str(rejected.value), "the file is named"
    return rejected.value


# What is read, and how it is recognised


def test_parquet_gives_back_what_was_written(tmp_path: Path) -> None:
    edits = [
        *World(20).edits("train", 10),
        Edit("a b", "c"),
        Edit("p", "t", portability=(Probe("q", "r", "alias"), Probe("s", "u"))),
    ]
    write_parquet(edits, tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet")) == edits


def test_json_lines_and_json(tmp_path: Path) -> None:
    for name, content in {"edits.jsonl": lines(GOOD) + "\n\n", "edits.json": json.dumps(GOOD, indent=2)}.items():
        assert list(read_edits(written(tmp_path / name, content))) == EDITS


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    assert list(read_edits(written(tmp_path / "one.txt", json.dumps(GOOD)))) == EDITS
    assert list(read_edits(written(tmp_path / "two.json", lines(GOOD)))) == EDITS
    write_parquet(EDITS, tmp_path / "three.csv")
    assert list(read_edits(tmp_path / "three.csv")) == EDITS


@pytest.mark.parametrize("content", [lines(GOOD), json.dumps(GOOD), 'prompt,target,rephrasings\na b,c,\nd,e,"[""f""]"\ng,h,\n'])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, content: str) -> None:
    assert list(read_edits(written(tmp_path / "edits", b"\xef\xbb\xbf" + content.encode()))) == EDITS


def test_csv_has_lists_as_json_and_lines_within_quotes() -> None:
    data = Path(__file__).parents[2] / "data" / "formats"
    first, second = read_edits(data / "plain.csv")
    assert first.rephrasings == ("Where Zoë Arden is from, people speak",)
    assert first.locality == (Probe("Émile Orr is a native speaker of", "Türkçe"),)
    assert second == Edit("The river of Tal\nflows into", "the North Lake")


def test_a_compressed_file_is_unpacked_by_its_name(tmp_path: Path) -> None:
    assert list(read_edits(written(tmp_path / "edits.jsonl.gz", gzip.compress(lines(GOOD).encode())))) == EDITS


def test_batches_keep_the_order_and_the_rest() -> None:
    edits = World(20).edits("train", 7)
    batches = list(batches_of(edits, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [edit for batch in batches for edit in batch] == edits


# Records at fault


@pytest.mark.parametrize(
    ("record", "field"),
    [({"prompt": "a"}, "target"), ({"prompt": "", "target": "b"}, "prompt"), ({"prompt": "a", "target": "b", "x": 1}, "x")],
)
def test_a_bad_record_is_named_with_its_field(tmp_path: Path, record: dict, field: str) -> None:
    rejected = rejection(written(tmp_path / "edits.jsonl", lines([GOOD[0], record])))
    assert (rejected.edit, rejected.field) == (1, field)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a", "tar', "not one whole JSON object"),
        (b'{"prompt": "\xff", "target": "b"}', "not UTF-8 text: byte 0xff at byte 12"),
        (b"[1, 2]", "not a JSON object but list"),
        (b'{"prompt": "\\ud800", "target": "b"}', "half of a surrogate pair"),
        (b'{"prompt": ' + b"[" * 100_000, "not one whole JSON object"),
        (b'{"prompt": ' + b"1" * 5_000 + b', "target": "b"}', "not one whole JSON object"),
        (b'{"prompt": "' + b"a" * 2_000_000 + b'"}', "longer than 1,000,000 bytes"),
    ],
    ids=["breaks-off", "encoding", "no-object", "surrogate", "deep", "huge-number", "long"],
)
def test_a_bad_line_stops_or_is_skipped(tmp_path: Path, line: bytes, reason: str) -> None:
    first, *rest = (json.dumps(record).encode() for record in GOOD)
    path = written(tmp_path / "edits.jsonl", b"\n".join([first, line, *rest]))
    rejected = rejection(path, max_record_bytes=1_000_000)
    assert rejected.edit == 1 and reason in rejected.reason
    intake = SkipReport()
    assert list(read_edits(path, max_record_bytes=1_000_000, on_fault="skip", intake=intake)) == EDITS
    assert intake.num_skipped == 1


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
    intake = SkipReport()
    assert list(read_edits(path, max_record_bytes=1_000_000, on_fault="skip", intake=intake)) == EDITS
    assert intake.num_skipped == 1


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
def test_a_quote_left_open_always_stops(tmp_path: Path, rows: dict[int, str], reason: str, on_fault: str) -> None:
    content = "".join(f"{rows.get(number, f'a{number},b')}\n" for number in range(1000))
    path = written(tmp_path / "edits.csv", "prompt,target\n" + content)
    found: list[Edit] = []
    with pytest.raises(EditRejected) as rejected:
        found.extend(read_edits(path, on_fault=on_fault))  # type: ignore[arg-type]
    assert reason in rejected.value.reason and "(edits.csv)" in rejected.value.reason
    assert rejected.value.edit == min(rows)


def test_a_cell_of_csv_may_have_many_lines_but_not_more(tmp_path: Path) -> None:
    most = "\n".join(["x"] * MAX_CELL_LINES)
    content = f'prompt,target\n"{most}","{most}"\nc,d\n'
    assert list(read_edits(written(tmp_path / "edits.csv", content))) == [Edit(most, most), Edit("c", "d")]
    more = content.replace(f'"{most}",', f'"{most}\nx",')
    assert rejection(written(tmp_path / "edits.csv", more), on_fault="skip").edit == 0


def test_a_row_of_csv_has_an_end(tmp_path: Path) -> None:
    path = written(tmp_path / "edits.csv", 'prompt,target\n"a\n' + '","\n' * MAX_ROW_LINES)
    assert "is of a row that has no end" in rejection(path, on_fault="skip").reason


@pytest.mark.parametrize(
    ("header", "said"),
    [("prompt;target", ";"), ("prompt\ttarget", "tabs"), ('"prompt";"target"', ";")],
)
def test_other_separators_are_named(tmp_path: Path, header: str, said: str) -> None:
    path = written(tmp_path / "edits.csv", f"{header}\na,b\n")
    assert f"cells are separated by commas; this header has {said} (" in rejection(path).reason


@pytest.mark.parametrize(
    "header", ["prompt,prompt", "prompt,,target", '"prompt', "prompt"], ids=["twice", "unnamed", "open", "one"]
)
def test_a_bad_csv_header_always_stops(tmp_path: Path, header: str) -> None:
    assert "CSV" in rejection(written(tmp_path / "edits.csv", header + "\na,b\n"), on_fault="skip").reason


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (',{"prompt": "x", "tar', "breaks off here: Unterminated string"),
        (",", "breaks off here: Expecting value"),
        ("", "the list has no end"),
        ("] more", "'m' stands after the list"),
        ("; {}]", "';' stands after it, not a comma"),
        (b', {"prompt": "\xff"}]', "not UTF-8 text: byte 0xff"),
        (', {"prompt": "' + "a" * 3_000_000 + '"}]', "longer than 1,000,000 characters"),
    ],
    ids=["breaks-off", "comma", "no-end", "more", "separator", "encoding", "long"],
)
def test_a_damaged_json_list_always_stops(tmp_path: Path, end: str | bytes, reason: str) -> None:
    start = json.dumps(GOOD).removesuffix("]").encode()
    path = written(tmp_path / "edits.json", start + (end if isinstance(end, bytes) else end.encode()))
    rejected = rejection(path, on_fault="skip", max_record_bytes=1_000_000)
    assert reason in rejected.reason and rejected.edit == 3


def test_what_is_no_object_in_a_json_list_is_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "edits.json", json.dumps([GOOD[0], 7, "x", None, *GOOD[1:]]))
    assert rejection(path).edit == 1
    intake = SkipReport()
    assert list(read_edits(path, on_fault="skip", intake=intake)) == EDITS
    assert intake.num_skipped == 3


@pytest.mark.parametrize("content", ["", "[]", " [ ] ", "prompt,target\n", "\n", " \n \n", "\n" * 100 + "prompt,target\n"])
def test_a_file_without_records_is_refused(tmp_path: Path, content: str) -> None:
    reason = rejection(written(tmp_path / "edits.json", content)).reason
    assert "empty" in reason or "no record" in reason


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-be"):
        text = "\ufeff" * (encoding != "utf-16") + json.dumps(GOOD)
        assert "is UTF-16, not UTF-8" in rejection(written(tmp_path / "edits", text.encode(encoding))).reason
    assert "packed by gzip" in rejection(written(tmp_path / "edits", gzip.compress(b"{}"))).reason
    assert "not UTF-8" in rejection(written(tmp_path / "edits", b"\xc3\x28,a\n")).reason


@pytest.mark.parametrize("damage", ["short", "bytes", "start"])
def test_a_packed_file_that_is_damaged_is_named_with_the_record(tmp_path: Path, damage: str) -> None:
    draw = random.Random(0)
    records = [{"prompt": f"p {draw.random()}", "target": str(draw.random())} for _ in range(20_000)]
    packed = gzip.compress(lines(records).encode())
    half = len(packed) // 2
    content = {
        "short": packed[:half],
        "bytes": packed[:half] + b"\xff" * 2000 + packed[half + 2000 :],
        "start": b"\xff" + packed[1:],
    }
    rejected = rejection(written(tmp_path / "edits.jsonl.gz", content[damage]), on_fault="skip")
    assert "cannot be read from here on" in rejected.reason
    assert rejected.edit == 0 if damage == "start" else 1_000 < rejected.edit < 12_000


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "lines"])
@pytest.mark.parametrize(
    ("record", "key"),
    [
        ('{"prompt": "x", "target": "y", "prompt": "z"}', "prompt"),
        ('{"prompt": "x", "target": "y", "locality": [{"prompt": "q", "target": "r", "target": "s"}]}', "target"),
    ],
    ids=["field", "inside"],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, record: str, key: str, as_list: bool) -> None:
    first, *rest = map(json.dumps, GOOD)
    all_ = [first, record, *rest]
    path = written(tmp_path / "edits", f"[{', '.join(all_)}]" if as_list else "\n".join(all_))
    rejected = rejection(path)
    assert rejected.edit == 1 and f"the key '{key}' more than once" in rejected.reason
    assert list(read_edits(path, on_fault="skip")) == EDITS


def test_json_lists_are_whole_at_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"prompt": f"ä {number} \\u00e4" * (number % 5), "target": "x"} for number in range(50)]
    content = json.dumps([*records, 12345, 1.5e3], ensure_ascii=False, indent=1).encode()
    for size in (16, 61, 256):
        monkeypatch.setattr("errata.datasets.records.CHUNK_BYTES", size)
        *found, number, other = records_of(io.BytesIO(content))
        assert found == records and "int" in str(number) and "float" in str(other)


class Endless(io.RawIOBase):
    """A line of JSON of `num_bytes` that is made as it is read."""

    def __init__(self, num_bytes: int) -> None:
        self.left = num_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.left)
        buffer[:count] = (b'{"prompt": "'.ljust(count, b"a") if self.left > 2 * 2**30 - 2**20 else b"a" * count)[:count]
        self.left -= count
        return count


def test_a_line_of_two_gigabytes_is_refused_without_being_held() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = Endless(2 * 2**30)
    found = next(iter(records_of(stream, max_bytes=2**20)))
    assert isinstance(found, EditRejected) and "longer than 1,048,576 bytes" in found.reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB more than before"


# Parquet


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


def test_columns_and_objects_are_held_to_the_same(tmp_path: Path) -> None:
    """Every edit that `Edit.faults` refuses is refused from Parquet too, and no other."""
    texts = ["a b", "", "  ", "a", "\u00a0", "b\x1f", "\x1f"]
    edits = [
        Edit(p, t, s, r) for p in texts for t in texts for s in (None, *texts) for r in ((), ("a",), ("\u2003",), ("", "a"))
    ]
    nullable = pa.schema([one.with_nullable(True) for one in parquet.SCHEMA])
    pq.write_table(pa.Table.from_batches([parquet.batch_of(edits)]).cast(nullable), tmp_path / "edits.parquet")
    assert list(read_edits(tmp_path / "edits.parquet", on_fault="skip")) == [edit for edit in edits if not list(edit.faults())]


def test_other_peoples_column_types_are_read(tmp_path: Path) -> None:
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


# Skipping


def test_what_was_skipped_is_counted_by_reason_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [{"prompt": f"p {i}", "target": "t", "subject": f"it's {i}"} for i in range(5)] + [{"prompt": "p", "target": ""}]
    path = written(tmp_path / "edits.jsonl", lines([*GOOD, *bad]))
    intake = SkipReport()
    with caplog.at_level(logging.WARNING):
        assert list(read_edits(path, on_fault="skip", intake=intake)) == EDITS
    assert intake.num_skipped == 6 and sorted(intake.skipped.values()) == [1, 5]
    assert all(len(examples) <= 3 for examples in intake.examples.values())
    assert "edit 3, subject:" in intake.report() and "5 × subject: … does not occur in the prompt …" in intake.report()
    assert intake.report() in caplog.text


def test_only_numbers_that_vary_are_left_out_of_a_reason() -> None:
    intake = SkipReport()
    intake.skip(EditRejected("is not UTF-8 text: byte 12 of the line (a.jsonl)", field="rephrasings[1]", code=Code.NOT_TEXT))
    assert intake.report().splitlines()[:2] == [
        "skipped 1 record",
        "  1 × rephrasings[1]: is not UTF-8 text: byte 12 of the line",
    ]
    intake.skip(EditRejected("is not UTF-8 text: byte 1,345 of the line (a.jsonl)", field="rephrasings[1]", code=Code.NOT_TEXT))
    intake.skip(EditRejected("is not UTF-8 text: byte 12 of the line (a.jsonl)", field="rephrasings[2]", code=Code.NOT_TEXT))
    assert intake.report().splitlines()[:2] == [
        "skipped 3 records",
        "  3 × rephrasings[N]: is not UTF-8 text: byte N of the line",
    ]


def test_reasons_without_end_do_not_fill_the_memory() -> None:
    intake = SkipReport()
    for number in range(1000):
        intake.skip(EditRejected("is wrong", field="x" * number, code=Code.EDITOR_FAILED))
    assert intake.num_skipped == 1000 and len(intake.skipped) == len(intake.examples) == MAX_REASONS + 1


def test_it_is_stop_or_skip() -> None:
    with pytest.raises(ValueError, match="stop or skip, not 'ignore'"):
        read_edits("nowhere", on_fault="ignore")  # type: ignore[arg-type]


# Places


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for number, edit in enumerate(EDITS):
        write_parquet([edit], tmp_path / "parts" / f"part-{number}.parquet")
    written(tmp_path / "parts" / "_notes.txt", "nothing")
    return tmp_path / "parts"


def test_folders_patterns_and_uris(parts: Path) -> None:
    for where in (parts, f"{parts}/part-*.parquet", parts.as_uri(), f"{parts.as_uri()}/part-*.parquet"):
        assert list(read_edits(where)) == EDITS
    assert list(read_edits(f"{parts.as_uri()}/part-1.parquet")) == EDITS[1:2]


def test_another_filesystem_of_pyarrow(parts: Path) -> None:
    inner = pafs.SubTreeFileSystem(str(parts.parent), pafs.LocalFileSystem())
    assert list(read_edits("parts", filesystem=inner)) == EDITS
    memory = pafs._MockFileSystem()
    with memory.open_output_stream("edits.jsonl") as out:
        out.write(lines(GOOD).encode())
    assert list(read_edits("edits.jsonl", filesystem=memory)) == EDITS


def test_what_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    for where, said in {"none.json": "no file", "*.json": "no file is named like", ".": "folder without Parquet"}.items():
        with pytest.raises(FileNotFoundError, match=said):
            read_edits(tmp_path / where)
    with pytest.raises(ValueError, match="URIs are file://"):
        read_edits("gopher://host/edits.json")


def test_a_file_on_the_hub_without_a_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"hf://datasets/some/one/edits.jsonl cannot be reached: .*offline"):
        read_edits("hf://datasets/some/one/edits.jsonl")


def test_a_hub_dataset_needs_the_datasets_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        list(read_edits("hf:someone/edits"))


def test_rows_of_a_hub_dataset_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        asked.append((name, split, streaming))
        return iter([{**record, "subject": None} for record in GOOD])

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert list(read_edits("hf:someone/edits")) == list(read_edits("hf:someone/edits:test")) == EDITS
    assert asked == [("someone/edits", "train", True), ("someone/edits", "test", True)]
