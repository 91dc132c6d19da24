"""The command `errata import`."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from errata.cli import import_file
from errata.client import bulk_import
from tests.fakes.backend import SAYS, UNMADE, UNQUEUED
from tests.fakes.served import Answer, Cut, Service, serving
from tests.unit.cli.invoke import PROMPT, errata, file_of, words


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_import, "NUM_EDITS", 4)
    monkeypatch.setattr(bulk_import, "NUM_OPEN", 2)


@pytest.mark.usefixtures("small_chunks")
def test_a_file_is_posted_in_order_and_a_second_run_posts_nothing(service: Service, tmp_path: Path) -> None:
    source = file_of(tmp_path, [f"t{i}" for i in range(10)])
    done = errata("import", source)
    assert done.exit_code == 0 and "10 of 10 posted: 10 applied" in done.output
    assert [edit["target"] for edit in service.queued] == [f"t{i}" for i in range(10)]
    assert {len(edits) for _, edits, _ in service.backend.posts} == {2, 4}
    assert set(service.queued[0]) == {"prompt", "target", "id"}
    again = errata("import", source)
    assert again.exit_code == 0 and "10 applied" in again.output and len(service.queued) == 10
    other = errata("import", source, "--run", "second", "--limit", "3")
    assert other.exit_code == 0 and "3 of 3" in other.output and len(service.queued) == 13


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_import_continues(service: Service, tmp_path: Path) -> None:
    source = file_of(tmp_path, ["same"] * 11)
    service.troubles.path = "/v1/edits"
    gone = Answer(403, {}, json.dumps({"error": {"message": "no"}}))
    service.troubles.coming.extend([Cut(9), Cut(9), Cut(0), Cut(9), gone])  # the listing, two chunks, one of them twice
    done = errata("import", source)
    assert done.exit_code == 1 and "posts no edit twice" in done.output and "HTTP 403" in done.output
    assert len(service.queued) == 8
    done = errata("import", source)
    assert done.exit_code == 0 and "11 of 11 posted: 11 applied" in done.output and len(service.queued) == 11


@pytest.mark.usefixtures("small_chunks")
def test_rejected_edits_are_listed_and_written(service: Service, tmp_path: Path) -> None:
    source = file_of(tmp_path, ["t0", UNQUEUED, "t2", UNMADE, UNQUEUED, UNQUEUED, UNQUEUED, UNQUEUED, "t8"])
    done = errata("import", source, "--rejected", str(tmp_path / "rejected.jsonl"))
    assert done.exit_code == 1 and "4 of 9 posted: 3 applied, 6 rejected" in done.output
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert sorted((row["number"], row["code"], row["reason"], row["says"]) for row in rows) == [
        (1, "too_long", "target: has 99 tokens", None),
        (3, "guard.perplexity", "it would break the model", SAYS),
        *((number, "too_long", "target: has 99 tokens", None) for number in (4, 5, 6, 7)),
    ]
    assert "it would break the model" in words(done) and [edit["target"] for edit in service.queued] == [
        "t0",
        "t2",
        UNMADE,
        "t8",
    ]


@pytest.mark.usefixtures("small_chunks")
def test_a_refused_question_of_a_dialogue_is_listed(service: Service, tmp_path: Path) -> None:
    dialogue = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which city?"}]
    source = tmp_path / "edits.jsonl"
    source.write_text(json.dumps({"messages": dialogue, "target": UNQUEUED}) + "\n")
    done = errata("import", str(source))
    assert done.exit_code == 1 and "Which city?" in words(done) and "0 of 1 posted" in done.output, done.output


@pytest.mark.usefixtures("small_chunks")
def test_only_edits_beyond_the_limits_of_a_post_are_left_out(service: Service, tmp_path: Path) -> None:
    edits = [{"prompt": f"{PROMPT} {i}", "target": "t"} for i in range(6)]
    edits[1] |= {"rephrasings": ["r"] * 65}
    edits[2] |= {"target": "t" * 16_385}
    source = tmp_path / "edits.jsonl"
    source.write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    done = errata("import", str(source), "--rejected", str(tmp_path / "rejected.jsonl"))
    assert done.exit_code == 1 and "4 of 6 posted: 4 applied, 2 rejected" in done.output
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(row["number"], row["code"]) for row in rows] == [(1, "too_long"), (2, "too_long")]
    assert "at most 64 items" in rows[0]["reason"] and "at most 16384 characters" in rows[1]["reason"]
    assert [edit["prompt"] for edit in service.queued] == [f"{PROMPT} {i}" for i in (0, 3, 4, 5)]


@pytest.mark.usefixtures("small_chunks")
def test_an_import_waits_while_the_queue_is_full_and_splits_large_posts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, max_queue=3) as service:
        source = file_of(tmp_path, ["same"] * 9)
        done = errata("import", source, "--url", service.url)
        assert done.exit_code == 0 and "9 of 9 posted: 9 applied" in done.output and len(service.queued) == 9
        service.backend.held = True

        def make_once_there_is_no_room() -> None:
            while service.backend.journal.depth < 2:
                time.sleep(0.01)
            time.sleep(0.5)
            service.make()

        monitor = threading.Thread(target=make_once_there_is_no_room)
        monitor.start()
        monkeypatch.setattr(import_file, "RETRY_S", 20.0)
        done = errata("import", source, "--url", service.url, "--run", "2", "--no-wait")
        monitor.join()
        assert done.exit_code == 0 and "trying again" in done.output and len(service.queued) == 18


def test_edits_of_chat_are_posted_as_they_are_asked(service: Service, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]
    said = {"target": "Lyon", "aliases": ["Lugdunum"], "answer": "It is Lyon."}
    edits = [
        {"messages": messages, **said},
        {"question": "What is it?", **said},
        {"prompt": "What is it?", "form": "both", "target": "Lyon"},
        {"prompt": PROMPT, "target": "Lyon"},
    ]
    source = tmp_path / "edits.jsonl"
    source.write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    done = errata("import", str(source))
    assert done.exit_code == 0 and "4 of 4 posted: 4 applied" in done.output
    ((_, posted, _), *_) = service.backend.posts
    assert posted == [edits[0], {"prompt": "What is it?", "form": "chat", **said}, *edits[2:]]
    source.write_text(json.dumps({"question": "What is it?", "target": "Lyon", "answer": "It is Nice."}))
    done = errata("import", str(source))
    assert done.exit_code == 1 and "edit 0, answer: does not contain the target" in done.output


def test_an_import_without_wait_returns_before_edits_are_made(service: Service, tmp_path: Path) -> None:
    service.backend.held = True
    done = errata("import", file_of(tmp_path, ["a", "b"]), "--no-wait")
    assert done.exit_code == 0 and "2 of 2 posted: 0 applied, 2 queued" in done.output


def test_a_faulty_file_is_found_before_anything_is_posted(service: Service, tmp_path: Path) -> None:
    source = file_of(tmp_path, ["a", "", "c"])
    done = errata("import", source)
    assert done.exit_code == 1 and "edit 1, target: is empty" in done.output and service.queued == []
    done = errata("import", source, "--on-fault", "skip")
    assert done.exit_code == 0 and "2 of 2 posted" in done.output
    for wrong, says in (("none.jsonl", "no file"), (str(tmp_path), "Parquet")):
        done = errata("import", wrong)
        assert done.exit_code == 1 and says in done.output
    assert errata("import", source, "--on-fault", "ask").exit_code == 2


def test_an_absent_subject_and_what_is_left_out(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "edits.jsonl"
    source.write_text(json.dumps({"prompt": PROMPT, "target": "t", "subject": "Tal", "rephrasings": [""]}))
    done = errata("import", str(source))
    assert done.exit_code == 1 and "--absent-subject drop" in done.output and service.queued == []
    done = errata("import", str(source), "--absent-subject", "drop")
    assert done.exit_code == 0 and "1 × subject_not_in_prompt (subject)" in done.output, done.output
    assert "1 × empty_field (rephrasings[])" in done.output and "subject" not in service.queued[0]
    assert errata("import", str(source), "--absent-subject", "keep").exit_code == 2


def test_an_interrupted_import_says_how_to_continue(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Any) -> None:
        raise KeyboardInterrupt

    service.backend.held = True
    monkeypatch.setattr(bulk_import.Import, "_settle", interrupt)
    done = errata("import", file_of(tmp_path, ["a"]))
    assert done.exit_code == 1 and "interrupted" in done.output and len(service.queued) == 1
