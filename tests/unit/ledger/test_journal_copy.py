"""Copies of the journal: of a point in time, while its worker writes, and put back only where no edit is lost."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from errata.ledger import journal_copy
from errata.ledger.journal_copy import copied, journal_of, make_wanted, put_back
from serving.worker.journal import Journal
from serving.worker.journal_copies import make_copies

EDIT = {"prompt": "p", "target": "t"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.journal"


def ids_in(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as db:
        return [row[0] for row in db.execute("SELECT id FROM edits ORDER BY seq")]


def test_the_journal_of_a_ledger_is_beside_it() -> None:
    assert journal_of("/a/ledger/") == journal_of(Path("/a/ledger")) == Path("/a/ledger.journal")


def test_without_a_worker_the_journal_is_copied_with_its_write_ahead_log(path: Path) -> None:
    with copied(path) as copy:
        assert copy is None
    worker = Journal(path)
    ids = worker.submit([EDIT, EDIT])
    worker._lock.close()  # As after a SIGKILL: the log was not merged into the database.
    assert path.with_name(f"{path.name}-wal").stat().st_size > 0
    worker._connection.close()
    with copied(path) as copy:
        assert copy is not None and ids_in(copy) == ids
    assert not list(path.with_name(f"{path.name}.copies").iterdir())


def test_a_running_worker_makes_the_copy_while_edits_go_on(path: Path) -> None:
    journal, seen = Journal(path), list[list[str]]()

    def push() -> None:
        with copied(path, wait_s=30) as copy:
            assert copy is not None
            seen.append(ids_in(copy))

    async def serve() -> list[str]:
        ids, task = list[str](), asyncio.create_task(make_copies(journal))
        pushing = asyncio.create_task(asyncio.to_thread(push))
        while not pushing.done():
            ids += journal.submit([EDIT])
            await asyncio.sleep(0.002)
        task.cancel()
        await pushing
        return ids

    ids = asyncio.run(serve())
    assert len(seen[0]) > 0 and seen[0] == ids[: len(seen[0])], "the copy is a point in time"


def test_a_worker_that_makes_no_copy_is_named(path: Path) -> None:
    with (
        Held(path),
        pytest.raises(ValueError, match=r"held by process \d+, and made no copy of the journal"),
        copied(path, 0.2),
    ):
        pass
    assert not list(path.with_name(f"{path.name}.copies").iterdir())


class Held:
    """A journal that a worker has, which answers no request."""

    def __init__(self, path: Path) -> None:
        self.journal = Journal(path)

    def __enter__(self) -> None:
        self.journal.submit([EDIT])

    def __exit__(self, *_: Any) -> None:
        self.journal.close()


def test_only_requests_of_a_copy_are_answered(path: Path, tmp_path: Path) -> None:
    folder = path.with_name(f"{path.name}.copies")
    folder.mkdir()
    for name in ("a" * 32 + ".wanted", "x.wanted", "b" * 32):
        (folder / name).touch()
    made: list[Path] = []

    def back_up(to: Path) -> None:
        made.append(to)
        to.touch()

    assert make_wanted(path, back_up) == 1 == len(made)
    assert sorted(file.name for file in folder.iterdir()) == ["a" * 32 + ".sqlite", "b" * 32, "x.wanted"]


def test_a_copy_that_was_left_behind_is_removed_later(path: Path) -> None:
    folder = path.with_name(f"{path.name}.copies")
    folder.mkdir()
    fresh, stale = folder / f"{'a' * 32}.sqlite", folder / f"{'b' * 32}.sqlite"
    for copy in (fresh, stale):
        copy.touch()
    os.utime(stale, (1.0, 1.0))
    assert make_wanted(path, lambda to: to.touch()) == 0 and list(folder.iterdir()) == [fresh]


def test_a_journal_with_other_edits_a_damaged_copy_and_a_running_service_are_refused(path: Path, tmp_path: Path) -> None:
    first = Journal(path)
    first.submit([EDIT])
    first.close()
    with copied(path) as copy:
        assert copy is not None
        put_back(copy, tmp_path / "new.journal")
        assert ids_in(tmp_path / "new.journal") == ids_in(path)
        later = Journal(path)
        later.submit([EDIT])
        with pytest.raises(ValueError, match=r"in use, .*end that service first"):
            put_back(copy, path)
        later.close()
        with pytest.raises(ValueError, match="has 1 edits that the copy lacks"):
            put_back(copy, path)
        assert len(ids_in(path)) == 2
        copy.write_bytes(b"no database at all, and longer than a header of SQLite is, which has a hundred bytes" * 4)
        with pytest.raises(ValueError, match="cannot be read"):
            put_back(copy, tmp_path / "new.journal")
    assert len(ids_in(tmp_path / "new.journal")) == 1


def test_a_journal_that_is_replaced_leaves_no_write_ahead_log_behind(path: Path, tmp_path: Path) -> None:
    one = Journal(path)
    one.submit([EDIT])
    one._lock.close()
    one._connection.close()
    with copied(path) as copy:
        assert copy is not None
        more = Journal(path)
        more.finish(ids_in(copy), 3)
        more.close()
        put_back(copy, path)
    again = Journal(path)
    assert [entry.state for entry in again.newest(9)] == ["queued"]
    again.close()


def test_the_log_of_a_journal_that_was_moved_away_alone_is_not_applied_to_the_copy(path: Path, tmp_path: Path) -> None:
    one = Journal(path)
    one.submit([EDIT])
    one.close()
    with copied(path) as copy:
        assert copy is not None
        more, log = Journal(path), path.with_name(f"{path.name}-wal")
        more.submit([EDIT])
        held = log.read_bytes()  # As after a SIGKILL: the second edit is in the log alone.
        more.close()
        path.unlink()
        log.write_bytes(held)
        with pytest.raises(ValueError, match=r"-wal belongs to a journal that is not there: move it away"):
            put_back(copy, path)
        assert not path.exists() and log.read_bytes() == held
        log.unlink()
        put_back(copy, path)
    assert len(ids_in(path)) == 1


def test_two_pushes_side_by_side_both_get_a_copy(path: Path) -> None:
    first = Journal(path)
    first.submit([EDIT])
    first.close()
    found: list[int] = []

    def push() -> None:
        with copied(path, wait_s=20) as copy:
            assert copy is not None
            found.append(len(ids_in(copy)))

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 4 and journal_copy.POLL_S < 1
