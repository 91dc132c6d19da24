"""Atomic writes of two writers and of one that fails, and logs on a disk that becomes full."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.durable import append_line, new_folder, records, replaced
from tests.fakes.full_disk import no_file_over


def test_a_line_that_fits_in_part_is_removed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append_line(log, b'{"a": 1}')
    with no_file_over(15), pytest.raises(OSError):
        append_line(log, b'{"b": 2}')
    assert log.read_bytes() == b'{"a": 1}\n'
    append_line(log, b'{"c": 3}')
    assert list(records(log)) == [{"a": 1}, {"c": 3}]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replaced(path) as one, replaced(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), replaced(path) as file:
        file.write_text("new")
        raise KeyError
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_of_two_writers_of_one_folder_the_second_fails(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(OSError), new_folder(path) as one:
        (one / "file").write_text("one")
        with new_folder(path) as other:
            (other / "file").write_text("other")
    assert (path / "file").read_text() == "other" and [folder.name for folder in tmp_path.iterdir()] == ["folder"]
