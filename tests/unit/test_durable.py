"""Atomic writes of two writers, of one that fails and of one that is killed, and logs on a disk that becomes full."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from errata import durable
from errata.durable import append_line, new_folder, records, replaced, write_text
from tests.fakes.full_disk import no_file_over

Atomic = Callable[[Path], AbstractContextManager[Path]]
WRITER = """
import sys
from pathlib import Path
from errata.durable import new_folder, replaced
with {"replaced": replaced, "new_folder": new_folder}[sys.argv[1]](Path(sys.argv[2])) as path:
    (path / "file" if path.is_dir() else path).write_text("half")
    print("writes", flush=True)
    input()
"""


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


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")
    with no_file_over(15), pytest.raises(OSError):
        write_text(path, "new " * 10)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_text_for_a_pipe_is_written_into_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        write_text(pipe, "é")
        assert reader.communicate()[0] == "é"
    assert pipe.is_fifo()


def test_a_link_and_a_mode_stay(tmp_path: Path) -> None:
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.write_text("old")
    shared.chmod(0o600)
    link.symlink_to(shared)
    write_text(link, "through the link")
    assert link.is_symlink() and shared.read_text() == "through the link"
    write_text(shared, "new")
    assert shared.read_text() == "new" and stat.S_IMODE(shared.stat().st_mode) == 0o600


def test_the_error_of_a_missing_folder_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "report.json"
    with pytest.raises(FileNotFoundError) as failed:
        write_text(path, "text")
    assert failed.value.filename == str(path)


def test_of_two_writers_of_one_folder_the_second_fails(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(OSError), new_folder(path) as one:
        (one / "file").write_text("one")
        with new_folder(path) as other:
            (other / "file").write_text("other")
    assert (path / "file").read_text() == "other" and [folder.name for folder in tmp_path.iterdir()] == ["folder"]


@contextmanager
def writer(atomic: Atomic, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that writes to `path` until it reads a line. It is killed at the end."""
    command = [sys.executable, "-c", WRITER, atomic.__name__, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "writes\n"
            yield process
        finally:
            process.kill()


def write(atomic: Atomic, path: Path) -> None:
    with atomic(path) as new:
        (new / "file" if new.is_dir() else new).write_text("whole")


@pytest.mark.parametrize("atomic", [replaced, new_folder])
def test_the_next_write_removes_what_killed_writers_left(tmp_path: Path, atomic: Atomic) -> None:
    path = tmp_path / "target"
    with ExitStack() as writers:
        for _ in range(3):
            writers.enter_context(writer(atomic, path))
    assert len(list(tmp_path.glob(".new-target.?"))) == 3 and not path.exists()
    write(atomic, path)
    assert [left.name for left in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("atomic", [replaced, new_folder])
def test_a_write_leaves_those_of_living_writers_alone(tmp_path: Path, atomic: Atomic) -> None:
    path, other = tmp_path / "target", tmp_path / "target.0"
    with writer(atomic, path), writer(atomic, other), writer(atomic, path) as last:
        write(atomic, tmp_path / "target.1")
        with writer(atomic, path):
            pass
        write(atomic, path)
        assert len(list(tmp_path.glob(".new-target.[0-9]"))) == 2, "the killed one's is removed, the two others are not"
        path.rename(tmp_path / "earlier")
        last.communicate("\n")
        assert last.returncode == 0 and (path / "file" if path.is_dir() else path).read_text() == "half"


def test_a_name_whose_lock_file_was_just_removed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock file may vanish between its opening and its locking: another writer then makes and locks a new one."""
    path, lock = tmp_path / "file", durable.lock_descriptor

    def removed_before(descriptor: int, *, blocking: bool) -> bool:
        monkeypatch.setattr(durable, "lock_descriptor", lock)
        (tmp_path / ".new-file.0.lock").unlink()
        return lock(descriptor, blocking=blocking)

    monkeypatch.setattr(durable, "lock_descriptor", removed_before)
    with replaced(path) as one, replaced(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
