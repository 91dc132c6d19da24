"""JSON lines and JSON lists: what is read, and damage by line, record and file."""

from __future__ import annotations

import io
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from errata.datasets.reader import read_edits
from errata.datasets.records import records_of
from errata.datasets.skip_report import SkipReport
from errata.edit import EditRejected
from tests.unit.datasets.files import EDITS, GOOD, lines, rejection, written


def test_json_lines_and_a_json_list_give_the_same_edits(tmp_path: Path) -> None:
    for name, content in {"edits.jsonl": lines(GOOD) + "\n\n", "edits.json": json.dumps(GOOD, indent=2)}.items():
        assert list(read_edits(written(tmp_path / name, content))) == EDITS


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
        (b"[1, 2]", "not a JSON object but a list"),
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
    skip_report = SkipReport()
    assert list(read_edits(path, max_record_bytes=1_000_000, on_fault="skip", skip_report=skip_report)) == EDITS
    assert skip_report.num_skipped == 1


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (',{"prompt": "x", "tar', "breaks off here: Unterminated string"),
        (",", "breaks off here: Expecting value"),
        ("", "the list has no end"),
        ("] more", "'m' follows the list"),
        ("; {}]", "';' follows it instead of a comma"),
        (b', {"prompt": "\xff"}]', "not UTF-8 text: byte 0xff"),
        (", " + "[" * 100_000, "breaks off here"),
        (', {"prompt": "' + "a" * 3_000_000 + '"}]', "longer than 1,000,000 characters"),
    ],
    ids=["breaks-off", "comma", "no-end", "more", "separator", "encoding", "deep", "long"],
)
def test_a_damaged_json_list_always_stops(tmp_path: Path, end: str | bytes, reason: str) -> None:
    start = json.dumps(GOOD).removesuffix("]").encode()
    path = written(tmp_path / "edits.json", start + (end if isinstance(end, bytes) else end.encode()))
    rejected = rejection(path, on_fault="skip", max_record_bytes=1_000_000)
    assert reason in rejected.reason and rejected.edit == 3


def test_an_element_of_a_list_that_is_no_object_is_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "edits.json", json.dumps([GOOD[0], 7, {"prompt": "\ud800", "target": "x"}, None, *GOOD[1:]]))
    assert rejection(path).edit == 1
    skip_report = SkipReport()
    assert list(read_edits(path, on_fault="skip", skip_report=skip_report)) == EDITS
    assert skip_report.num_skipped == 3


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "lines"])
@pytest.mark.parametrize(
    ("record", "key"),
    [
        ('{"prompt": "x", "target": "y", "prompt": "z"}', "prompt"),
        ('{"prompt": "x", "target": "y", "locality": [{"prompt": "q", "target": "r", "target": "s"}]}', "target"),
    ],
    ids=["field", "inside"],
)
def test_a_repeated_key_is_refused(tmp_path: Path, record: str, key: str, as_list: bool) -> None:
    first, *rest = map(json.dumps, GOOD)
    all_ = [first, record, *rest]
    path = written(tmp_path / "edits", f"[{', '.join(all_)}]" if as_list else "\n".join(all_))
    rejected = rejection(path)
    assert rejected.edit == 1 and f"the key '{key}' more than once" in rejected.reason
    assert list(read_edits(path, on_fault="skip")) == EDITS


def test_a_list_is_parsed_whole_at_every_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"prompt": f"ä {number} \\u00e4" * (number % 5), "target": "x"} for number in range(50)]
    content = json.dumps([*records, 12345, 1.5e3], ensure_ascii=False, indent=1).encode()
    for size in (16, 61, 256):
        monkeypatch.setattr("errata.datasets.records.CHUNK_BYTES", size)
        monkeypatch.setattr("errata.datasets.json_records.CHUNK_BYTES", size)
        *found, number, other = records_of(io.BytesIO(content))
        assert found == records and "a number" in str(number) and "a number" in str(other)


class Endless(io.RawIOBase):
    """Stream of one JSON line of `num_bytes`, generated while it is read."""

    def __init__(self, num_bytes: int) -> None:
        self.left = num_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.left)
        buffer[:count] = (b'{"prompt": "'.ljust(count, b"a") if self.left > 2 * 2**30 - 2**20 else b"a" * count)[:count]
        self.left -= count
        return count


def test_a_line_of_two_gigabytes_is_refused_in_bounded_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = Endless(2 * 2**30)
    found = next(iter(records_of(stream, max_bytes=2**20)))
    assert isinstance(found, EditRejected) and "longer than 1,048,576 bytes" in found.reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB more than before"
