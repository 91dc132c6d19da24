"""Posted edits beside the ones that are known: when each held, what it contradicts, and the history of a subject."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from errata.edit_memory import reader
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.lookup import Candidate
from errata.text.rules import fact_of
from serving.worker import edit_worker, known_edits
from serving.worker.edit_worker import EditWorker
from tests.fakes.edit_worker import apply, make_worker

LEADER = {"prompt": "Who leads Kurk?", "subject": "Kurk"}
TODAY = f"{datetime.now(UTC):%Y-%m-%d}"


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check: the fake model has no tokenizer that could find faults."""
    monkeypatch.setattr(edit_worker, "check_edits", lambda *_: None)


def posted(worker: EditWorker, *edits: dict[str, Any]) -> list[dict[str, Any]]:
    """Post edits one after the other, each made before the next; returns the answers."""
    answers = []
    for edit in edits:
        answers += asyncio.run(worker.submit([edit], False, None))
        apply(worker)
    return answers


def shown(worker: EditWorker, id: str) -> dict[str, Any]:
    return asyncio.run(worker.edit_status(id))


def test_a_later_correction_gives_the_earlier_one_its_end(tmp_path):
    worker = make_worker(tmp_path)
    ann, bob, cem = posted(
        worker,
        LEADER | {"target": "Ann", "valid_from": "2010-01-01", "source": "the minutes"},
        LEADER | {"target": "Bob", "valid_from": "2020-05-01"},
        LEADER | {"target": "Cem"},
    )
    assert not any("contradicts" in one for one in (ann, bob, cem))
    first = shown(worker, ann["id"])
    assert (first["held_from"], first["held_to"], first["superseded_by"]) == ("2010-01-01", "2020-05-01", bob["id"])
    assert first["state"] == "applied" and first["edit"]["source"] == "the minutes", "nothing is deleted"
    second = shown(worker, bob["id"])
    assert (second["held_from"], second["held_to"], second["superseded_by"]) == ("2020-05-01", TODAY, cem["id"])
    assert {"held_from", "held_to", "superseded_by"}.isdisjoint(shown(worker, cem["id"]))


def test_an_edit_that_is_not_live_ends_nothing(tmp_path):
    worker = make_worker(tmp_path)
    ann, bob = posted(worker, LEADER | {"target": "Ann"}, LEADER | {"target": "Bob", "valid_from": "2020-05-01"})
    assert shown(worker, ann["id"])["held_to"] == "2020-05-01"
    worker.live_model.move_to(1)
    assert "held_to" not in shown(worker, ann["id"]) and shown(worker, bob["id"])["live"] is False
    assert "held_from" not in shown(worker, bob["id"])


def test_a_contradiction_is_reported_kept_and_not_refused(tmp_path):
    worker = make_worker(tmp_path)
    ann, bob = posted(
        worker, LEADER | {"target": "Ann", "valid_from": "2020-01-01"}, LEADER | {"target": "Bob", "valid_from": "2020-01-01"}
    )
    assert bob["contradicts"] == [ann["id"]] and bob["state"] == "queued"
    found = shown(worker, bob["id"])
    assert found["state"] == "applied" and found["contradicts"] == [ann["id"]] and "held_to" not in shown(worker, ann["id"])


def test_a_queued_edit_is_contradicted_and_the_newest_counts(tmp_path):
    worker = make_worker(tmp_path)
    edits = [LEADER | {"target": name, "valid_from": "2020-01-01"} for name in ("Ann", "Bob", "Bob")]
    answers = [asyncio.run(worker.submit([edit], False, None))[0] for edit in edits]
    assert answers[1]["contradicts"] == [answers[0]["id"]] and "contradicts" not in answers[2]


def test_an_edit_of_another_question_or_dialogue_is_no_contradiction(tmp_path):
    worker = make_worker(tmp_path)
    dated = {"target": "Bob", "valid_from": "2020-01-01"}
    first, *others = posted(
        worker, {"prompt": "Who leads Kurk?", **dated}, {"prompt": "Who led Kurk?", **dated, "target": "Ann"}
    )
    assert not any("contradicts" in one for one in (first, *others))


def test_a_dry_run_reports_contradictions(tmp_path, monkeypatch):
    worker = make_worker(tmp_path)
    (ann,) = posted(worker, LEADER | {"target": "Ann", "valid_from": "2020-01-01"})
    rows = {"edits": [{"state": "applied"}, {"state": "applied"}]}
    monkeypatch.setattr("serving.worker.dry_run.tried", lambda *_: rows)
    edits = [{"prompt": "Who leads Prais?", "target": "Cem"}, LEADER | {"target": "Bob", "valid_from": "2019-01-01"}]
    found = asyncio.run(worker.dry_run(edits))["edits"]
    assert found[1]["contradicts"] == [ann["id"]] and "contradicts" not in found[0] and worker.journal.depth == 0


@pytest.mark.parametrize(
    ("new", "is_reported"),
    [({"target": "Bob"}, True), ({"target": "Ann"}, False), ({"target": "Bob", "valid_to": "2020-01-01"}, False)],
)
def test_a_question_that_the_memory_holds_to_be_the_same(tmp_path, monkeypatch, new, is_reported):
    worker = make_worker(tmp_path)
    (ann,) = posted(worker, LEADER | {"target": "Ann", "valid_from": "2020-01-01"})
    record = Record(fact_of("Who leads Kurk?"), "", {"key": torch.zeros(1, 384)}, "Kurk", ann["id"])
    worker.live_model.bank = Bank("answer", "encoder", {record.fact: record})
    asked = []
    monkeypatch.setattr(known_edits, "best_record", lambda bank, question: asked.append(question) or Candidate(record, 0.9))
    (answer,) = posted(worker, {"prompt": "Who is the head of Kurk?", **new})
    assert answer.get("contradicts") == ([ann["id"]] if is_reported else None)
    assert [(one.question, one.in_chat) for one in asked] == [("Who is the head of Kurk?", False)]


def test_a_record_of_an_unknown_edit_is_no_contradiction(tmp_path, monkeypatch):
    worker = make_worker(tmp_path)
    record = Record(fact_of("Who leads Kurk?"), "", {"key": torch.zeros(1, 384)}, "Kurk", "gone")
    worker.live_model.bank = Bank("text", "encoder", {record.fact: record})
    monkeypatch.setattr(known_edits, "best_record", lambda *_: Candidate(record, 0.9))
    (answer,) = posted(worker, LEADER | {"target": "Bob"})
    assert "contradicts" not in answer and reader.best_record is not known_edits.best_record


def test_the_history_of_a_subject_is_found_by_its_words(tmp_path):
    worker = make_worker(tmp_path)
    ids = [one["id"] for one in posted(worker, LEADER | {"target": "Ann"}, {"prompt": "Is KURK old?", "target": "Yes"})]
    ids += [one["id"] for one in posted(worker, {"prompt": "Where is New Kurk?", "target": "Here"}, LEADER | {"target": "Bob"})]
    page = asyncio.run(worker.edits(None, 2, None, "kurk"))
    assert [one["id"] for one in page["edits"]] == [ids[3], ids[1]], "a subject that is not given is the longest name"
    page = asyncio.run(worker.edits("applied", 2, page["next"], "kurk"))
    assert [one["id"] for one in page["edits"]] == [ids[0]] and page["next"] is None
    assert page["edits"][0]["superseded_by"] == ids[3]
    assert [one["id"] for one in asyncio.run(worker.edits(None, 9, None, "New Kurk"))["edits"]] == [ids[2]]
    assert asyncio.run(worker.edits("rejected", 9, None, "Kurk"))["edits"] == []
