"""The journal: nothing accepted is lost, nothing is made twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.journal import MAX_ATTEMPTS, Journal, KeyReused, UnknownEdit


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
    second = Journal(path)
    second.requeue_applying()
    assert second.depth == 3
    assert [entry.id for entry in second.take(8)] == ids[:1], "what was taken before is taken alone"
    assert [entry.id for entry in second.take(8)] == ids[1:]


def test_an_edit_that_kills_its_worker_is_rejected_in_the_end(path: Path) -> None:
    journal = Journal(path)
    (id,) = journal.submit(edits("a"))
    for _ in range(MAX_ATTEMPTS):
        assert journal.take(1)[0].id == id
        journal.requeue_applying()
    assert journal.get(id).state == "rejected"
    assert "died" in str(journal.get(id).reason)


def test_requeue_does_not_count_as_an_attempt(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"))
    journal.take(2)
    journal.requeue(ids)
    assert [entry.id for entry in journal.take(2)] == ids


def test_a_key_used_again_gives_the_same_ids_or_is_refused(path: Path) -> None:
    journal = Journal(path)
    ids = journal.submit(edits("a", "b"), "key")
    assert journal.submit(edits("a", "b"), "key") == ids
    assert journal.depth == 2
    with pytest.raises(KeyReused, match="other edits"):
        journal.submit(edits("a"), "key")
    assert journal.depth == 2
    assert Journal(path).submit(edits("a", "b"), "key") == ids


def test_an_unknown_id_is_named(path: Path) -> None:
    with pytest.raises(UnknownEdit, match="'x'"):
        Journal(path).get("x")


def test_a_submission_is_all_or_nothing(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(TypeError):
        journal.submit([{"prompt": "a"}, {"prompt": object()}])
    assert journal.depth == 0
