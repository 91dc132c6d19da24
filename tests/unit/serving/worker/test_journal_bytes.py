"""The journal's bounds in bytes: pages, the queue, and the list of open edits."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from serving.worker.journal import Journal
from serving.worker.queue_limit import QueueFull, QueueLimit


def edits(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "target": "t"} for prompt in prompts]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_page_ends_before_it_is_too_large(path: Path) -> None:
    """Three hundred edits of the largest post would be 300 MiB."""
    journal = Journal(path)
    ids = journal.submit(edits("a", "b" * 600, "c" * 600, "d"))
    assert [entry.id for entry in journal.newest(10, max_bytes=1000)] == [ids[3], ids[2]]
    assert [entry.id for entry in journal.newest(10, before=3, max_bytes=10)] == [ids[1]], "one is always there"
    assert journal.has_older(2) and not journal.has_older(1) and not journal.has_older(4, "applied")


def test_the_open_edits_are_listed_without_their_content(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits(*("x" * 100_000 for _ in range(50))))
    journal.take(3)
    tracemalloc.start()
    assert journal.pending() == [(id, "applying" if i < 3 else "queued") for i, id in enumerate(ids)]
    journal.requeue_applying()
    assert journal.reverted() == {} and journal.depth == 50
    peak, _ = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    assert peak < 500_000, "5 MB of edits are open"


def test_the_queue_is_limited_in_bytes(path: Path) -> None:
    journal = Journal(path)
    limit = QueueLimit(max_bytes=2_000)
    first, _ = journal.submit(edits("a" * 800, "b" * 800), limit=limit)
    assert 1_600 < journal.num_bytes < 2_000
    with pytest.raises(QueueFull, match=r"bytes of edits wait and the limit is 2000 \(max_queue_bytes=2000\)") as full:
        journal.submit(edits("c" * 800), limit=limit)
    assert not full.value.is_too_large and journal.depth == 2
    with pytest.raises(QueueFull, match="post fewer in one request") as full:
        journal.submit(edits("d" * 2_000), limit=limit)
    assert full.value.is_too_large
    journal.take(1)
    journal.finish([first], 1)
    journal.submit(edits("c" * 800), limit=limit)


def test_an_edit_that_only_the_ledger_had_counts_when_it_is_queued_again(path: Path) -> None:
    journal = Journal(path)
    (edit,) = edits("a" * 800)
    assert journal.adopt([{**edit, "id": "e"}], 7, 12.5) == 1 and journal.num_bytes == 0
    assert journal.reopen(7) == 1 and 800 < journal.num_bytes < 900
