"""The journal: no accepted edit is lost, and none is made twice."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.edit import Code
from serving.worker.journal import (
    MAX_ATTEMPTS,
    Journal,
    JournalFailed,
    KeyReused,
    UnknownEdit,
)
from serving.worker.queue_limit import QueueFull, QueueLimit


def edits(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "target": "t"} for prompt in prompts]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "journal"


def test_edits_are_taken_in_order_and_settle(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b", "c"))
    assert journal.depth == 3
    taken = journal.take(2)
    assert [entry.id for entry in taken] == ids[:2]
    assert taken[0].edit == {"prompt": "a", "target": "t", "id": ids[0]}
    assert [journal.get(id).state for id in ids] == ["applying", "applying", "queued"]
    journal.finish([ids[0]], 7)
    journal.reject(ids[1], "no", "prompt")
    assert journal.get(ids[0]).to_json()["version"] == 7
    assert {"reason": "no", "field": "prompt"}.items() <= journal.get(ids[1]).to_json().items()
    assert [entry.id for entry in journal.pending()] == ids[2:]
    assert journal.get(ids[1]).is_settled and not journal.get(ids[2]).is_settled


def test_another_process_finds_what_was_accepted(path: Path) -> None:
    first = Journal(path)
    ids = first.submit(edits("a", "b", "c"))
    first.take(1)
    first.close()
    second = Journal(path)
    second.requeue_applying()
    assert second.depth == 3
    assert [entry.id for entry in second.take(8)] == ids[:1], "what was taken before is taken alone"
    assert [entry.id for entry in second.take(8)] == ids[1:]


def test_requeue_does_not_count_as_an_attempt(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"))
    journal.take(2)
    journal.requeue(ids)
    assert [entry.id for entry in journal.take(2)] == ids


def test_a_settled_edit_is_never_queued_again(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b", "c", "d"))
    journal.take(3)
    journal.finish(ids[:1], 1)
    journal.reject(ids[1], "no")
    journal.requeue(ids)
    assert [journal.get(id).state for id in ids] == ["applied", "rejected", "queued", "queued"]
    assert [journal.get(id).attempts for id in ids] == [1, 1, 0, 0], "one that was not taken is not counted down"


def test_a_repeated_key_returns_the_same_ids_or_is_refused(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"), "key")
    assert journal.submit(edits("a", "b"), "key") == ids
    assert journal.depth == 2
    with pytest.raises(KeyReused, match="other edits"):
        journal.submit(edits("a"), "key")
    assert journal.depth == 2
    journal.close()
    assert Journal(path).submit(edits("a", "b"), "key") == ids


def test_an_unknown_id_is_named(path: Path) -> None:
    with pytest.raises(UnknownEdit, match="'x'"):
        Journal(path).get("x")


def test_a_submission_is_all_or_nothing(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(TypeError):
        journal.submit([{"prompt": "a"}, {"prompt": object()}])
    assert journal.depth == 0


def test_a_full_queue_accepts_no_part_of_a_submission(path: Path) -> None:
    journal = Journal(path)
    journal.submit(edits("a", "b"), limit=QueueLimit(3))
    with pytest.raises(QueueFull) as full:
        journal.submit(edits("c", "d"), "key", limit=QueueLimit(3))
    assert (full.value.used, full.value.added, journal.depth) == (2, 2, 2)
    assert journal.submit(edits("c"), "key", limit=QueueLimit(3)) and journal.depth == 3
    assert pickle.loads(pickle.dumps(full.value)).limit == 3


def test_the_same_key_of_two_authors_is_two_keys(path: Path) -> None:
    journal = Journal(path)
    mine, yours = (journal.submit(edits("a"), "k", poster) for poster in ("ann", "bob"))
    assert mine != yours and journal.submit(edits("a"), "k", "ann") == mine
    assert [journal.get(id).to_json()["poster"] for id in (*mine, *yours)] == ["ann", "bob"]


def test_edits_of_a_lost_version_are_queued_again_in_their_place(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b", "c"))
    journal.take(2)
    journal.finish(ids[:2], 4)
    assert journal.reopen(3) == 0 and journal.reopen(4) == 2
    assert [entry.id for entry in journal.take(8)] == ids


def test_an_edit_that_cannot_be_served_is_tried_alone_and_then_rejected(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"))
    journal.take(2)
    journal.retry(ids, "no replica takes it")
    for _ in range(MAX_ATTEMPTS - 1):
        assert [entry.id for entry in journal.take(2)] == ids[:1]
        journal.retry(ids[:1], "no replica takes it")
    assert (journal.get(ids[0]).state, journal.get(ids[0]).reason) == ("rejected", "no replica takes it")
    assert [entry.id for entry in journal.take(2)] == ids[1:]


def test_later_states_are_kept(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"))
    journal.take(2)
    journal.finish(ids[1:], 1, superseded={ids[0]: "the later one counts"})
    journal.mark_reverted({ids[1]: 2}, {})
    journal.close()
    found = [(entry.state, entry.version, entry.is_settled) for entry in map(Journal(path).get, ids)]
    assert found == [("superseded", 1, True), ("reverted", 2, True)]


def test_the_oldest_queued_edit_has_an_age(path: Path) -> None:
    journal = Journal(path)
    assert journal.age_s == 0.0
    journal.submit(edits("a"))
    time.sleep(0.02)
    assert 0.02 <= journal.age_s < 5


def test_a_journal_of_an_earlier_release_is_read(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.executescript(
        "CREATE TABLE edits (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL,"
        " state TEXT NOT NULL, version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0,"
        " created REAL NOT NULL);"
        "INSERT INTO edits (id, body, state, created) VALUES ('x', '{\"prompt\": \"a\"}', 'queued', 1.0);"
    )
    old.close()
    journal = Journal(path)
    assert journal.get("x").poster is None and journal.depth == 1
    assert journal.get(journal.submit(edits("b"), poster="ann")[0]).poster == "ann"


def test_a_rejection_keeps_its_code_and_what_the_model_says(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b", "c"))
    journal.take(3)
    journal.reject(ids[0], "no", "target", Code.INEFFECTIVE, "It is Kano.")
    journal.reject(ids[1], "no", "target", Code.INEFFECTIVE, "")
    journal.reject(ids[2], "no", None, Code.UNSOLVABLE)
    journal.close()
    found = [entry.to_json() for entry in map(Journal(path).get, ids)]
    assert [one["code"] for one in found] == ["ineffective", "ineffective", "unsolvable"]
    assert [one["says"] for one in found[:2]] == ["It is Kano.", ""] and "says" not in found[2]


def test_a_rejection_of_an_earlier_release_is_read(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.execute(
        "CREATE TABLE edits (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, body TEXT NOT NULL,"
        " state TEXT NOT NULL, version INTEGER, reason TEXT, field TEXT, attempts INTEGER NOT NULL DEFAULT 0,"
        " created REAL NOT NULL, poster TEXT, trace TEXT, code TEXT, unchanged TEXT)"
    )
    reported = {
        "id": "x",
        "state": "rejected",
        "reason": "the edited model answers 'Bob'",
        "code": "ineffective",
        "created": 1.0,
    }
    columns = ", ".join(reported)
    old.execute(f"INSERT INTO edits ({columns}, body) VALUES (?, ?, ?, ?, ?, ?)", (*reported.values(), '{"prompt": "a"}'))
    old.commit()
    old.close()
    journal = Journal(path)
    assert journal.get("x").to_json() == reported | {"edit": {"prompt": "a"}}
    assert journal.num_bytes == 0
    (id,) = journal.submit(edits("b"))
    journal.reject(id, "no", says="Bob")
    assert journal.get(id).says == "Bob"


def test_a_full_disk_refuses_a_submission_and_changes_nothing(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a"))
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own limit acts as a full disk.
    with pytest.raises(JournalFailed, match="full"):
        journal.submit(edits(*("x" * 1000 for _ in range(100))), "key")
    assert journal.depth == 1 and journal.get(ids[0]).state == "queued"
    journal._connection.execute("PRAGMA max_page_count = 1000000")
    assert len(journal.submit(edits(*("x" * 1000 for _ in range(100))), "key")) == 100


# -- pages ------------------------------------------------------------------------------------------------------------


def test_pages_are_newest_first(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits(*"abcdef"))
    journal.take(4)
    journal.finish(ids[0:4:2], 1)
    assert [entry.id for entry in journal.newest(10)] == ids[::-1]
    page = journal.newest(2)
    assert [entry.id for entry in journal.newest(2, before=page[-1].seq)] == [ids[3], ids[2]]
    (newest,) = journal.newest(1, "applied")
    assert [entry.id for entry in journal.newest(10, "applied", newest.seq)] == [ids[0]]
    assert journal.newest(10, "reverted") == []


@pytest.mark.parametrize(
    ("read", "plan"),
    [
        (lambda journal: journal.newest(10, "rejected"), "USING INDEX edits_by_state (state=? AND seq<?)"),
        (lambda journal: journal.newest(10, "rejected", 50), "USING INDEX edits_by_state (state=? AND seq<?)"),
        (lambda journal: journal.newest(10, None, 50), "USING INTEGER PRIMARY KEY (rowid<?)"),
        (lambda journal: journal.depth, "USING COVERING INDEX edits_by_s"),
        (lambda journal: journal.num_bytes, "USING COVERING INDEX edits_by_size (state=?)"),
        (lambda journal: journal.has_older(9, "rejected"), "USING COVERING INDEX edits_by_state (state=? AND seq<?)"),
        (lambda journal: journal.age_s, "USING INDEX edits_by_state (state=?)"),
        (lambda journal: journal.reverted(), "USING INDEX edits_by_"),
    ],
)
def test_frequent_queries_read_no_whole_table(path: Path, read: Callable[[Journal], object], plan: str) -> None:
    journal = Journal(path)
    asked: list[str] = []
    journal._connection.set_trace_callback(asked.append)
    read(journal)
    journal._connection.set_trace_callback(None)
    (query,) = asked
    steps = [row[3] for row in journal._connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert len(steps) == 1 and plan in steps[0], "the index gives the rows in order, without a sort"


# -- one writer -------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from serving.worker.journal import Journal
journal = Journal(sys.argv[1])
journal.submit([{"prompt": "a", "target": "t"}])
journal.take(1)
print("open", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the journal, with one edit `applying`."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    return process


def test_a_second_worker_gets_the_process_that_holds_the_journal(path: Path) -> None:
    with holder(path) as first:
        began = time.monotonic()
        with pytest.raises(JournalFailed, match=f"held by process {first.pid}; end it first"):
            Journal(path, wait_s=0.3)
        assert 0.3 <= time.monotonic() - began < 10
        first.communicate("")


def test_a_killed_worker_releases_the_journal_to_a_waiting_one(path: Path) -> None:
    with holder(path) as first:
        timer = threading.Timer(0.3, os.kill, (first.pid, signal.SIGKILL))
        timer.start()
        second = Journal(path, wait_s=30)
        timer.join()
    second.requeue_applying()
    assert [entry.edit["prompt"] for entry in second.take(8)] == ["a"]


def test_one_process_opens_a_journal_once(path: Path) -> None:
    first = Journal(path)
    with pytest.raises(JournalFailed, match=f"process {os.getpid()}"):
        Journal(path, wait_s=0)
    assert first.depth == 0, "the open journal still works"
    first.close()
    second = Journal(path, wait_s=0)
    first.close()
    with pytest.raises(JournalFailed):
        Journal(path, wait_s=0)
    second.close()


# -- faults of SQLite -------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_journal_is_refused_and_released(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no journal at all, but long enough to look at" * 100)
    for _ in range(2):
        with pytest.raises(JournalFailed, match="cannot be opened: file is not a database"):
            Journal(path, wait_s=0)
    path.unlink()
    assert Journal(path, wait_s=0).depth == 0


READS: tuple[Callable[[Journal], object], ...] = (
    lambda journal: journal.depth,
    lambda journal: journal.age_s,
    lambda journal: journal.pending(),
    lambda journal: journal.newest(10),
    lambda journal: journal.get("x"),
    lambda journal: journal.reverted(),
    lambda journal: journal.take(1),
)
WRITES: tuple[Callable[[Journal], object], ...] = (
    lambda journal: journal.submit(edits("b")),
    lambda journal: journal.finish(["x"], 1),
    lambda journal: journal.requeue(["x"]),
    lambda journal: journal.retry(["x"], "no"),
    lambda journal: journal.reopen(1),
)


@pytest.mark.parametrize(("ask", "what"), [(ask, "read") for ask in READS] + [(ask, "written") for ask in WRITES])
def test_a_damaged_journal_raises_from_every_method(path: Path, ask: Callable[[Journal], object], what: str) -> None:
    journal = Journal(path)
    journal.submit(edits(*("x" * 1000 for _ in range(20))))
    journal.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))  # The first page holds the schema.
    damaged = Journal(path)
    with pytest.raises(JournalFailed, match=f"cannot be {what}: .*malformed"):
        ask(damaged)
    damaged.close()


@pytest.mark.parametrize("ask", [*READS, *WRITES])
def test_a_closed_journal_raises_from_every_method(path: Path, ask: Callable[[Journal], object]) -> None:
    journal = Journal(path)
    journal.close()
    with pytest.raises(JournalFailed, match="closed"):
        ask(journal)


# -- edits that only the ledger has -----------------------------------------------------------------------------------


def test_edits_that_only_the_ledger_has_get_an_entry_and_known_ones_keep_theirs(path: Path) -> None:
    journal = Journal(path)
    (known,) = journal.submit(edits("a"), poster="ada")
    journal.reject(known, "no")
    made = [{"prompt": "a", "target": "t", "id": known}, {"prompt": "b", "target": "t", "id": "x", "poster": "bob"}]
    assert (journal.adopt(made, 7, 12.5), journal.adopt(made, 7, 12.5), journal.adopt([], 8, 1.0)) == (1, 0, 0)
    assert journal.get(known).state == "rejected"
    entry = journal.get("x")
    assert (entry.state, entry.version, entry.created, entry.poster) == ("applied", 7, 12.5, "bob")
    assert entry.edit == {"prompt": "b", "target": "t", "id": "x"}
