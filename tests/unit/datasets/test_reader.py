"""Files of any kind: recognised by content, compressed, empty, damaged."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from errata.datasets.reader import read_edits, write_parquet
from errata.edit import batches_of
from errata.testbed.world import World
from tests.unit.datasets.files import EDITS, GOOD, lines, rejection, written


def test_the_format_is_recognised_by_content(tmp_path: Path) -> None:
    assert list(read_edits(written(tmp_path / "one.txt", json.dumps(GOOD)))) == EDITS
    assert list(read_edits(written(tmp_path / "two.json", lines(GOOD)))) == EDITS
    write_parquet(EDITS, tmp_path / "three.csv")
    assert list(read_edits(tmp_path / "three.csv")) == EDITS


@pytest.mark.parametrize("content", [lines(GOOD), json.dumps(GOOD), 'prompt,target,rephrasings\na b,c,\nd,e,"[""f""]"\ng,h,\n'])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, content: str) -> None:
    assert list(read_edits(written(tmp_path / "edits", b"\xef\xbb\xbf" + content.encode()))) == EDITS


def test_a_compressed_file_is_recognised_by_its_name(tmp_path: Path) -> None:
    assert list(read_edits(written(tmp_path / "edits.jsonl.gz", gzip.compress(lines(GOOD).encode())))) == EDITS


def test_batches_keep_the_order_and_the_rest() -> None:
    edits = World(20).edits("train", 7)
    batches = list(batches_of(edits, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [edit for batch in batches for edit in batch] == edits


@pytest.mark.parametrize("content", ["", "[]", " [ ] ", "prompt,target\n", "\n", " \n \n", "\n" * 100 + "prompt,target\n"])
def test_a_file_without_records_is_refused(tmp_path: Path, content: str) -> None:
    reason = rejection(written(tmp_path / "edits.json", content)).reason
    assert "empty" in reason or "no record" in reason


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-be"):
        text = "\ufeff" * (encoding != "utf-16") + json.dumps(GOOD)
        assert "is UTF-16, not UTF-8" in rejection(written(tmp_path / "edits", text.encode(encoding))).reason
    assert "packed by gzip" in rejection(written(tmp_path / "edits", gzip.compress(b"{}"))).reason
    assert "not UTF-8" in rejection(written(tmp_path / "edits", b"\xc3\x28,a\n")).reason


@pytest.mark.parametrize("damage", ["short", "bytes", "start"])
def test_damage_of_a_compressed_file_is_named_with_the_record(tmp_path: Path, damage: str) -> None:
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


def test_on_fault_is_stop_or_skip() -> None:
    with pytest.raises(ValueError, match="on_fault is stop or skip, not 'ignore'"):
        read_edits("nowhere", on_fault="ignore")  # type: ignore[arg-type]
