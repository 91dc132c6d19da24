"""The commands `errata edit`, `edits`, `ask` and `watch`."""

from __future__ import annotations

import json
import threading
import time

import pytest

from errata.cli import edits
from tests.fakes.backend import CONTRADICTING, UNMADE, UNQUEUED
from tests.fakes.served import Cut, Service
from tests.unit.cli.invoke import PROMPT, errata, words


def test_an_edit_is_made_and_reported(service: Service) -> None:
    done = errata("edit", PROMPT, "Lyon", "--subject", "France", "--rephrasing", "France's capital is")
    assert done.exit_code == 0 and "applied in version 1" in done.output
    ((_, edits, wait),) = service.backend.posts
    assert edits == [{"prompt": PROMPT, "target": "Lyon", "subject": "France", "rephrasings": ["France's capital is"]}] and wait


def test_a_rejected_edit_has_a_reason_and_exit_code_1(service: Service) -> None:
    done = errata("edit", PROMPT, UNMADE)
    assert done.exit_code == 1 and "rejected: target: it would break the model" in done.output
    done = errata("edit", PROMPT, UNQUEUED)
    assert done.exit_code == 1 and "has 99 tokens (HTTP 422)" in done.output


def test_a_dry_run_shows_answers_figures_and_neighbours(service: Service) -> None:
    done = errata("edit", PROMPT, "Lyon", "--dry-run")
    assert done.exit_code == 0 and not service.backend.posts
    lines = done.output.splitlines()
    assert lines[:2] == ["before: Paris", "after: Lyon"] and "guard: locality 0.975" in lines
    assert "warning: drift" in lines and "edit, lost: q a -> b" in lines and "nothing was changed" in lines[-1]
    done = errata("edit", PROMPT, UNMADE, "--dry-run")
    assert done.exit_code == 1 and "it would be rejected: it would break the model" in done.output


def test_time_and_source_are_posted_and_contradictions_said(service: Service) -> None:
    dated = ("--source", "https://a.example", "--valid-from", "2019-01-01", "--valid-to", "2020-01-01", "--reason", "It moved.")
    done = errata("edit", PROMPT, CONTRADICTING, *dated)
    assert done.exit_code == 0 and "it contradicts other, with another target for the same time" in done.output
    ((_, (posted,), _),) = service.backend.posts
    known = {"source": "https://a.example", "valid_from": "2019-01-01", "valid_to": "2020-01-01", "reason": "It moved."}
    assert posted == {"prompt": PROMPT, "target": CONTRADICTING, **known}
    assert "it contradicts other" in errata("edit", PROMPT, CONTRADICTING, "--dry-run").output
    done = errata("edit", PROMPT, "Lyon", "--valid-from", "2019-02-30")
    assert done.exit_code == 1 and "valid_from: is no day of the calendar: give it as YYYY-MM-DD" in done.output


def test_the_history_of_a_subject_is_oldest_first(service: Service) -> None:
    errata("edit", PROMPT, "Lyon", "--subject", "France", "--valid-from", "2020-05-01", "--source", "the minutes")
    errata("edit", PROMPT, "Nice", "--subject", "France", "--valid-from", "2010-05-01", "--valid-to", "2012-01-01")
    errata("edit", "The capital of Spain is", "Madrid", "--subject", "Spain")
    shown = words(errata("edits", "--subject", "france"))
    assert shown.index("Nice") < shown.index("Lyon") and "Madrid" not in shown
    assert "from 2010-05-01 until 2012-01-01: The capital of France is → Nice" in shown and "source the minutes" in shown
    found = json.loads(errata("edits", "--subject", "France", "--json").output)
    assert [edit["edit"]["target"] for edit in found["edits"]] == ["Nice", "Lyon"]
    assert "no edit is about 'Mars'" in errata("edits", "--subject", "Mars").output


def test_an_edit_without_wait_can_be_followed(service: Service) -> None:
    service.backend.held = True
    done = errata("edit", PROMPT, "Lyon", "--no-wait")
    assert done.exit_code == 0 and "queued as" in done.output
    edit_id = done.output.split("queued as ")[1].split(";")[0]
    threading.Timer(0.3, service.make).start()
    done = errata("watch", edit_id)
    assert done.exit_code == 0 and f"edit {edit_id} applied (version 1)" in done.output


def test_edits_are_listed_by_state_and_page(service: Service) -> None:
    for target in ("Lyon", UNMADE, "[red]Nice[/red]"):
        errata("edit", PROMPT, target)
    refused = errata("edit", PROMPT, "Nice\x1b[2J")
    assert refused.exit_code == 1 and "the control character U+001B" in refused.output and "\x1b" not in refused.output
    shown = words(errata("edits"))
    assert "[red]Nice[/red]" in shown and "it would break the model" in shown and "\x1b" not in shown
    done = errata("edits", "--state", "rejected")
    assert "Lyon" not in done.output and "rejected" in done.output
    first = errata("edits", "--limit", "2")
    cursor = first.output.split("--before ")[1].strip()
    assert "Lyon" not in first.output and "Lyon" in errata("edits", "--before", cursor).output
    assert len(json.loads(errata("edits", "--json").output)["edits"]) == 3
    assert errata("edits", "--state", "lost").exit_code == 2
    done = errata("edits", "--before", "x")
    assert done.exit_code == 1 and "HTTP 422" in done.output


def test_ask_shows_answers_and_their_version(one_version: str) -> None:
    done = errata("ask", "hello", "[b]you[/b]")
    assert done.output.splitlines() == ["hello hello!", "[b]you[/b] [b]you[/b]!", "version 1"]
    found = json.loads(errata("ask", "hello", "--json").output)
    assert found == {"answers": [" hello!"], "version_min": 1, "version_max": 1, "form": "completion"}


def test_ask_in_chat(one_version: str) -> None:
    done = errata("ask", "hello", "--form", "chat")
    assert done.output.splitlines() == ["hello hello?!", "version 1, in chat"]
    assert json.loads(errata("ask", "hello", "--form", "chat", "--json").output)["form"] == "chat"
    assert errata("ask", "hello", "--form", "both").exit_code == 2


def test_an_edit_names_its_form(service: Service) -> None:
    assert "applied in chat in version 1" in errata("edit", PROMPT, "Lyon", "--form", "chat").output
    assert service.backend.posts[0][1] == [{"prompt": PROMPT, "target": "Lyon", "form": "chat"}]
    assert errata("edit", PROMPT, "Lyon", "--form", "chatty").exit_code == 2


def test_an_edit_has_aliases_and_a_whole_answer(service: Service) -> None:
    said = ("--alias", "Lugdunum", "--alias", "LYS", "--answer", "It is Lyon.")
    assert errata("edit", PROMPT, "Lyon", "--form", "chat", *said).exit_code == 0
    posted = {"prompt": PROMPT, "target": "Lyon", "aliases": ["Lugdunum", "LYS"], "answer": "It is Lyon.", "form": "chat"}
    assert service.backend.posts[0][1] == [posted]
    done = errata("edit", PROMPT, "Nice", "--form", "chat", "--answer", "It is Lyon.")
    assert done.exit_code == 1 and "does not contain the target or one of its aliases (HTTP 422)" in done.output
    done = errata("edit", PROMPT, "Lyon", "--form", "completion", "--answer", "It is Lyon.")
    assert done.exit_code == 1 and "is written in chat alone" in done.output


def test_watch_prints_a_line_for_each_event(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.troubles.path = "/v1/events"
    service.troubles.coming.append(Cut(9))
    lines: list[str] = []

    def stop_after(message: str, style: str = "") -> None:
        lines.append(message)
        if "connected again" in message:
            raise KeyboardInterrupt

    monkeypatch.setattr(edits, "say", stop_after)
    command = threading.Thread(target=errata, args=("watch",), daemon=True)
    command.start()
    while not service.backend.event_bus.has_listeners:
        time.sleep(0.02)
    for target in ("Lyon", UNMADE, "Nice"):
        errata("edit", PROMPT, target)
    command.join(timeout=20)
    text = "\n".join(lines)
    assert not command.is_alive()
    for part in (" queued\n", "version 1: 1 edits on version 0\n", "live: version 1 (before: 0)"):
        assert part in text
    assert " rejected: it would break the model" in text


def test_watching_an_unknown_edit_is_an_error_with_advice(service: Service) -> None:
    done = errata("watch", "abc")
    assert done.exit_code == 1 and "errata edits" in done.output
    done = errata("watch", "../status")
    assert done.exit_code == 1 and "not the id of an edit" in done.output
