"""Places of edits: files, folders, patterns, URIs, other filesystems, Hugging Face."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.fs as pafs
import pytest

from errata.datasets.reader import read_edits, write_parquet
from tests.unit.datasets.files import EDITS, GOOD, lines, written


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for number, edit in enumerate(EDITS):
        write_parquet([edit], tmp_path / "parts" / f"part-{number}.parquet")
    written(tmp_path / "parts" / "_notes.txt", "nothing")
    return tmp_path / "parts"


def test_folders_patterns_and_uris_are_read(parts: Path) -> None:
    for where in (parts, f"{parts}/part-*.parquet", parts.as_uri(), f"{parts.as_uri()}/part-*.parquet"):
        assert list(read_edits(where)) == EDITS
    assert list(read_edits(f"{parts.as_uri()}/part-1.parquet")) == EDITS[1:2]


def test_another_filesystem_of_pyarrow_is_read(parts: Path) -> None:
    inner = pafs.SubTreeFileSystem(str(parts.parent), pafs.LocalFileSystem())
    assert list(read_edits("parts", filesystem=inner)) == EDITS
    memory = pafs._MockFileSystem()
    with memory.open_output_stream("edits.jsonl") as out:
        out.write(lines(GOOD).encode())
    assert list(read_edits("edits.jsonl", filesystem=memory)) == EDITS


def test_a_missing_source_is_refused_by_the_call(tmp_path: Path) -> None:
    for where, said in {"none.json": "no file", "*.json": "no file matches", ".": "folder without Parquet"}.items():
        with pytest.raises(FileNotFoundError, match=said):
            read_edits(tmp_path / where)
    with pytest.raises(ValueError, match="URIs are file://"):
        read_edits("gopher://host/edits.json")


def test_a_file_on_the_hub_needs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
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
