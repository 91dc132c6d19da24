"""Routes without Ray or an engine: statuses, codes and shapes."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from ray.exceptions import ActorDiedError, RayTaskError

from errata.edit import Code, Edit, EditRejected, Fault
from errata.generate import SwapFailed
from errata.guard.limits import Breach, VersionRefused
from errata.history.revert_selection import RevertRefused
from errata.ledger import HeadMoved, LedgerConflict, UnknownVersion
from errata.model.edit_check import check_edits
from errata.text.dialogue import Dialogue, Message
from serving.api import routes
from serving.api.schemas import EditOut, FaultOut
from serving.worker.journal import JournalFailed, KeyReused, UnknownEdit
from serving.worker.proposals import AlreadyDecided, OwnProposal, UnknownProposal
from serving.worker.queue_limit import QueueFull
from tests.fakes.backend import ScriptedBackend, entry, version
from tests.unit.serving.api.application import call


def asked(backend: ScriptedBackend, method: str, path: str, **options: Any) -> httpx.Response:
    app = FastAPI()
    routes.install(app, backend)
    return call(app, method, path, **options)


MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
BODY = {"edits": [{"prompt": "p", "target": "t"}], "wait": True}


@pytest.mark.parametrize(
    ("entries", "wait", "code"),
    [
        ([entry("a", "applied", version=3), entry("b", "applied", version=4)], True, 200),
        ([entry("a", "applied", version=3)], False, 202),
        ([entry("a", "applied", version=3), entry("b", "queued")], True, 202),
        ([entry("a", "applied", version=3), entry("b", "rejected", reason="no", code="too_long", field="prompt")], True, 422),
        ([entry("a", "superseded", version=4, reason="later"), entry("b", "applied", version=4)], True, 200),
        ([entry("a", "applied", version=4, live=True)], True, 200),
        ([entry("a", "applied", version=4, live=True), entry("b", "applied", version=3, live=False)], True, 409),
        ([entry("a", "applied", version=3, live=False)], False, 202),
    ],
)
def test_a_post_is_answered_by_the_states_of_its_edits(entries: list[dict[str, Any]], wait: bool, code: int) -> None:
    backend = ScriptedBackend(entries)
    answer = asked(backend, "POST", "/v1/edits", json={**BODY, "wait": wait}, headers={"Idempotency-Key": "k"})
    assert answer.status_code == code
    assert backend.seen == [([{"prompt": "p", "target": "t"}], wait, "k", None)]
    assert answer.json()["ids"] == [e["id"] for e in entries]
    if code == 200:
        assert answer.json()["version"] == 4
    if code == 422:
        assert answer.json()["error"] == {"message": "no", "code": "too_long", "field": "prompt", "edit": "b"}
    if code == 409:
        error = answer.json()["error"]
        assert (error["code"], error["edit"]) == ("not_live", "b") and "the service went back from version 3" in error[
            "message"
        ]


def test_a_dry_run_queues_nothing() -> None:
    backend = ScriptedBackend({"dry_run": True, "head": 3})
    answer = asked(backend, "POST", "/v1/edits?dry_run=true", json=BODY, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()) == (200, {"dry_run": True, "head": 3})
    assert backend.seen == [([{"prompt": "p", "target": "t"}],)]


def test_a_post_whose_edit_was_taken_out_is_not_answered_as_served() -> None:
    backend = ScriptedBackend([entry("a", "reverted", version=5, live=False)])
    answer = asked(backend, "POST", "/v1/edits", json=BODY, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 409 and answer.json()["edits"][0]["live"] is False
    assert "version 5 took it out" in answer.json()["error"]["message"]


def wrapped(cause: Exception) -> RayTaskError:
    return RayTaskError("submit", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "status", "code", "field"),
    [
        (EditRejected("bad", code=Code.TOO_LONG, edit=0, field="target"), 422, "too_long", "target"),
        (VersionRefused([Breach("drift", 0.6, 0.5, "too much")], {}), 422, "guard.drift", None),
        (KeyReused("again"), 409, "key_reused", "Idempotency-Key"),
        (LedgerConflict(1, 2), 409, "conflict", None),
        (HeadMoved(1, 2), 409, "head_moved", "expected_head"),
        (UnknownVersion("none"), 404, "unknown_version", "version"),
        (UnknownEdit("none"), 404, "unknown_edit", "id"),
        (UnknownProposal("none"), 404, "unknown_proposal", "id"),
        (AlreadyDecided("3f", "approved", "ann"), 409, "already_decided", "id"),
        (OwnProposal("ann is the author"), 403, "own_proposal", "Authorization"),
        (SwapFailed(3, ["r"], "late"), 503, "swap_failed", None),
        (QueueFull(9, 2, 10, 7), 429, "queue_full", "edits"),
        (RevertRefused("no version holds it", code=Code.UNKNOWN_EDIT, field="edits"), 404, "unknown_edit", "edits"),
        (RevertRefused("it is not part of it", code=Code.NOT_LIVE, field="edits"), 409, "not_live", "edits"),
        (RevertRefused("all of them", code=Code.PARTIAL_VERSION, field="mode"), 422, "partial_version", "mode"),
        (QueueFull(0, 20, 10), 413, "too_large", "edits"),
        (JournalFailed("the disk is full"), 503, "storage_failed", None),
        (OSError(28, "No space left on device"), 503, "storage_failed", None),
        (ActorDiedError(), 503, "unavailable", None),
    ],
)
@pytest.mark.parametrize("through_ray", [False, True])
def test_each_error_has_its_status_and_code(
    error: Exception, status: int, code: str, field: str | None, through_ray: bool
) -> None:
    raised = wrapped(error) if through_ray and not isinstance(error, ActorDiedError) else error
    answer = asked(ScriptedBackend(raised), "POST", "/v1/edits", json=BODY)
    found = answer.json()["error"]
    assert (answer.status_code, found["code"], found["field"]) == (status, code, field)
    assert ("Retry-After" in answer.headers) == (status in (429, 503))
    if isinstance(error, QueueFull) and status == 429:
        assert answer.headers["Retry-After"] == "7"


def test_a_dry_run_of_a_revert_reverts_nothing() -> None:
    backend = ScriptedBackend({"dry_run": True, "head": 1})
    answer = asked(backend, "POST", "/v1/revert?dry_run=true", json={"edits": ["e"], "expected_head": 1})
    assert (answer.status_code, answer.json()) == (200, {"dry_run": True, "head": 1})
    assert backend.seen == [(["e"], [], "auto", 1)]


def test_the_edits_of_a_subject_are_asked_for() -> None:
    backend = ScriptedBackend({"edits": [], "next": None})
    assert asked(backend, "GET", "/v1/edits?subject=New%20Kurk&limit=5").status_code == 200
    assert backend.seen == [(None, 5, None, "New Kurk")]
    assert asked(backend, "GET", "/v1/edits?subject=").json()["error"]["field"] == "subject"


def test_all_faults_of_a_batch_are_listed() -> None:
    with pytest.raises(EditRejected) as rejected:
        check_edits([Edit("p", ""), Edit("p", "t"), Edit("p", "t", "q", form="chat", aliases=(" ",), answer="It is u.")])
    error = asked(ScriptedBackend(wrapped(rejected.value)), "POST", "/v1/edits", json=BODY).json()["error"]
    assert (error["edit"], error["code"]) == (0, "empty_field")
    assert [(fault["edit"], fault["field"], fault["code"]) for fault in error["faults"]] == [
        (0, "target", "empty_field"),
        (2, "subject", "subject_not_in_prompt"),
        (2, "aliases", "empty_field"),
        (2, "answer", "invalid_value"),
    ]
    assert error["faults"][-1]["reason"] == "does not contain the target or one of its aliases"


def test_a_fault_has_what_the_model_says_only_where_it_was_asked() -> None:
    faults = [Fault(0, "target", Code.INEFFECTIVE, "no", says="half \ud800"), Fault(1, "target", Code.TOO_LONG, "no")]
    error = asked(ScriptedBackend(wrapped(EditRejected.of(faults))), "POST", "/v1/edits", json=BODY).json()["error"]
    assert [FaultOut(**fault).says for fault in error["faults"]] == ["half ?", None]
    assert set(error) == {"message", "code", "field", "edit", "faults"} and "says" not in error["faults"][1]


def test_a_rejected_edit_is_shown_with_what_the_model_says() -> None:
    reported = entry("a", "rejected", reason="no", code="ineffective", says="It is Kano.")
    answer = asked(ScriptedBackend([reported]), "POST", "/v1/edits", json=BODY).json()
    assert answer["error"] == {"message": "no", "code": "ineffective", "field": None, "edit": "a"}
    assert [EditOut(**edit).says for edit in answer["edits"]] == ["It is Kano."]


def test_versions_are_listed_and_shown_with_their_edits() -> None:
    assert asked(ScriptedBackend(), "GET", "/v1/versions").json() == {
        "head": 1,
        "newest": 1,
        "versions": [
            {
                "version": 1,
                "parent": 0,
                "editor": "Toy",
                "plan": "",
                "fingerprint": "f",
                "created": "2026-01-01",
                "num_edits": 0,
                "num_bytes": 4096,
                "norms": {"m": 0.5},
                "ranks": {"m": 1},
                "scorecard": {"efficacy": 0.5, "num_edits": 0, "method": "free"},
            }
        ],
    }
    assert asked(ScriptedBackend(), "GET", "/v1/versions/1").json()["edits"] == [{"prompt": "p", "target": "t", "id": "e"}]
    assert asked(ScriptedBackend(), "GET", "/v1/versions/2").status_code == 404


@pytest.mark.parametrize(
    ("query", "numbers"),
    [("", [1, 2, 3, 4, 5]), ("?limit=2", [4, 5]), ("?limit=2&before=4", [2, 3]), ("?before=3", [1, 2]), ("?before=1", [])],
)
def test_versions_are_listed_in_pages(query: str, numbers: list[int]) -> None:
    answer = asked(ScriptedBackend(num_versions=5), "GET", f"/v1/versions{query}").json()
    assert ([version["version"] for version in answer["versions"]], answer["newest"]) == (numbers, 5)


def test_without_a_limit_a_hundred_versions_are_listed_and_in_a_thread() -> None:
    """The event loop of a replica streams tokens: a long chain is not read there, and not all of it."""
    backend, loops = ScriptedBackend(num_versions=250), []
    app = FastAPI()
    routes.install(app, backend)

    @app.get("/loop")
    async def loop() -> None:
        loops.append(threading.get_ident())

    answer = call(app, "GET", "/v1/versions").json()
    assert [version["version"] for version in answer["versions"]] == list(range(151, 251))
    call(app, "GET", "/loop")
    assert backend.thread != loops[0]


def test_a_page_of_versions_ends_before_it_is_too_large() -> None:
    found = [version(number) for number in (9, 8, 7, 6)]
    size = len(json.dumps(routes.version_json(found[0], with_edits=False)))
    assert [one["version"] for one in routes.versions_page(9, 9, found, 10, 2 * size)["versions"]] == [8, 9]
    assert [one["version"] for one in routes.versions_page(9, 9, found, 10, 1)["versions"]] == [9]


def test_edits_are_listed() -> None:
    backend = ScriptedBackend({"edits": [entry("a", "queued")], "next": 4})
    answer = asked(backend, "GET", "/v1/edits?state=queued&limit=1&before=9")
    assert (answer.status_code, answer.json()["next"]) == (200, 4)
    assert backend.seen == [("queued", 1, 9, None)]


def test_events_are_server_sent() -> None:
    answer = asked(ScriptedBackend({}), "GET", "/v1/edits/e/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [line for line in answer.text.splitlines() if line.startswith("event:")] == ["event: queued", "event: applied"]
    assert json.loads(answer.text.splitlines()[1].removeprefix("data: ")) == entry("e", "queued")
    assert asked(ScriptedBackend(UnknownEdit("none")), "GET", "/v1/edits/e/events").status_code == 404
    assert 'event: head\r\ndata: {"head": 2, "before": 1}' in asked(ScriptedBackend(), "GET", "/v1/events").text


def test_versions_are_reverted_blamed_and_compared() -> None:
    backend = ScriptedBackend({"ok": True})
    for path, body, seen in (
        ("/v1/revert", {"edits": ["a"], "mode": "replay"}, (["a"], [], "replay", None, None)),
        ("/v1/revert", {"versions": [3]}, ([], [3], "auto", None, None)),
        ("/v1/revert", {"versions": [3], "expected_head": 7}, ([], [3], "auto", None, 7)),
        ("/v1/blame", {"prompt": "p"}, ("p", 8)),
        ("/v1/blame", {"question": "q", "max_tokens": 3}, (Dialogue.of("q"), 3)),
        ("/v1/blame", {"messages": MESSAGES}, (Dialogue.of("q", [Message("system", "s")]), 8)),
        ("/v1/rollback", {"version": 3}, (3, None, None)),
        ("/v1/rollback", {"version": 3, "expected_head": 0}, (3, None, 0)),
    ):
        assert asked(backend, "POST", path, json=body).json() == {"ok": True}
        assert backend.seen.pop() == seen
    assert asked(backend, "GET", "/v1/diff?from=1&to=4").json() == {"ok": True}
    assert backend.seen == [(1, 4)]


@pytest.mark.parametrize(
    ("method", "path", "body", "field", "code"),
    [
        ("POST", "/v1/revert", {"mode": "gently"}, "mode", "invalid_value"),
        ("POST", "/v1/revert", {"edits": "a"}, "edits", "wrong_type"),
        ("POST", "/v1/revert", {"edits": ["a" * 65]}, "edits", "too_long"),
        ("POST", "/v1/revert", {"versions": [-1]}, "versions", "invalid_value"),
        ("POST", "/v1/blame", {"prompt": ""}, "prompt", "empty_field"),
        ("POST", "/v1/blame", {"question": ""}, "question", "empty_field"),
        ("POST", "/v1/blame", {"messages": []}, "messages", "empty_field"),
        ("POST", "/v1/blame", {}, "prompt", "missing_field"),
        ("POST", "/v1/blame", {"prompt": "p", "question": "q"}, "question", "invalid_value"),
        ("POST", "/v1/blame", {"messages": [MESSAGES[0]]}, "messages", "invalid_value"),
        ("POST", "/v1/blame", {"messages": [*MESSAGES, *MESSAGES]}, "messages", "invalid_value"),
        ("POST", "/v1/edits", {"edits": [{"target": "t"}]}, "prompt", "missing_field"),
        ("POST", "/v1/edits", {"edits": [{"prompt": "p", "target": "t", "form": "song"}]}, "form", "invalid_value"),
        ("POST", "/v1/blame", {"prompt": "p", "max_tokens": 10**9}, "max_tokens", "invalid_value"),
        ("POST", "/v1/edits", {"edits": [{"prompt": "\ud800", "target": "t"}]}, "prompt", "not_text"),
        ("POST", "/v1/edits", {"edits": [{"prompt": "p", "target": "t", "\ud800": 1}]}, "edits", "not_text"),
        ("POST", "/v1/edits", {"edits": [{"prompt": "p", "target": "t", "aliases": "a"}]}, "aliases", "wrong_type"),
        ("POST", "/v1/edits", {"edits": [{"prompt": "p", "target": "t", "aliases": ["a"] * 65}]}, "aliases", "too_long"),
        ("POST", "/v1/edits", {"edits": [{"prompt": "p", "target": "t", "aliases": ["\ud800"]}]}, "aliases", "not_text"),
        ("POST", "/v1/edits", {"edits": [{"prompt": "p", "target": "t", "answer": 5}]}, "answer", "wrong_type"),
        ("POST", "/v1/edits", {"edits": []}, "edits", "empty_field"),
        ("POST", "/v1/rollback", {"version": 10**30}, "version", "invalid_value"),
        ("POST", "/v1/rollback", {"version": 0, "expected_head": True}, "expected_head", "wrong_type"),
        ("GET", "/v1/diff?from=1", None, "to", "missing_field"),
        ("GET", "/v1/diff?from=x&to=1", None, "from", "wrong_type"),
        ("GET", "/v1/versions?limit=0", None, "limit", "invalid_value"),
        ("GET", f"/v1/versions/{10**30}", None, "number", "invalid_value"),
        ("GET", f"/v1/edits/{'a' * 65}", None, "id", "too_long"),
        ("GET", "/v1/edits?state=gone", None, "state", "invalid_value"),
        ("GET", f"/v1/edits?before={2**63}", None, "before", "invalid_value"),
    ],
)
def test_the_field_at_fault_is_named(method: str, path: str, body: Any, field: str, code: str) -> None:
    content = None if body is None else json.dumps(body)  # ASCII: a lone surrogate comes as an escape
    answer = asked(ScriptedBackend({}), method, path, content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["field"], error["code"]) == (422, field, code)
    assert error["faults"][0]["code"] == code


def test_the_callers_name_is_passed_on() -> None:
    backend, app = ScriptedBackend([entry("a", "queued")]), FastAPI()
    routes.install(app, backend)

    async def with_key(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "errata.key": SimpleNamespace(name="ann")}, receive, send)

    assert call(with_key, "POST", "/v1/edits", json={**BODY, "wait": False}).status_code == 202
    assert backend.seen[0][-1] == "ann"


def test_metrics_are_text() -> None:
    answer = asked(ScriptedBackend("errata_live_version 3.0\n"), "GET", "/metrics")
    assert (answer.status_code, answer.text) == (200, "errata_live_version 3.0\n")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(("reasons", "code"), [([], 200), (["the edit worker: disk full"], 503)])
def test_ready_means_ready(reasons: list[str], code: int) -> None:
    answer = asked(ScriptedBackend(reasons), "GET", "/ready")
    assert (answer.status_code, answer.json()) == (code, {"ready": not reasons, "reasons": reasons})
