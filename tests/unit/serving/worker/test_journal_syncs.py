"""Transactions of the journal: those that end with an fsync, and those that a restart finds again without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.worker.journal import Journal
from tests.unit.serving.worker.test_journal import edits


def test_only_what_a_restart_finds_again_is_written_without_an_fsync(tmp_path: Path) -> None:
    journal, done, synced = Journal(tmp_path / "journal"), list[str](), list[bool]()
    ids = journal.submit(edits("a", "b", "c"), "k")
    journal._connection.set_trace_callback(done.append)

    def level() -> str:
        return next(line for line in reversed(done) if "PRAGMA synchronous" in line).partition("=")[2]

    works: tuple[Callable[[], object], ...] = (
        lambda: journal.take(3),
        lambda: journal.finish(ids[:1], 1),  # The version has it.
        lambda: journal.finish(ids[1:2], 1, unchanged={ids[1]: "t"}),  # No version has it.
        lambda: journal.reject(ids[2], "no"),
        lambda: journal.answer(ids, "k"),
        lambda: journal.submit(edits("d")),
    )
    for work in works:
        work()
        synced.append(level() == "FULL")
    assert synced == [True, False, True, True, False, True]
