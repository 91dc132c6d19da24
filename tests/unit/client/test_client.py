"""The Python client against the service's own routes on a real port."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from errata.access_keys import add_key
from errata.client import client as module
from errata.client import retries
from errata.client.client import Client
from errata.client.errors import ErrataError, Unreachable
from errata.client.events import Event, events_of
from errata.local.services import free_port
from tests.fakes.backend import SAYS, UNMADE, UNQUEUED
from tests.fakes.served import Answer, Cut, Service, serving

EDIT = {"prompt": "The capital of France is", "target": "Lyon"}
NOT_NOW = Answer(503, {"Retry-After": "0"})


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_S", 0.05)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as running:
        yield running


# -- calls ------------------------------------------------------------------------------------------------------------


def test_each_method_returns_the_answer_of_its_route(service: Service) -> None:
    with Client(service.url) as client:
        answer = client.edit([EDIT, {**EDIT, "rephrasings": ["France's capital is"]}])
        assert answer["version"] == 1 and [edit["state"] for edit in answer["edits"]] == ["applied", "applied"]
        assert client.edit_status(answer["ids"][0])["edit"]["target"] == "Lyon"
        made = client.version(1)
        assert [edit["prompt"] for edit in made["edits"]] == [EDIT["prompt"]] * 2
        assert client.versions()["head"] == 1
        tried = client.dry_run([EDIT])
        assert [(one["before"], one["after"]) for one in tried["edits"]] == [("Paris", "Lyon")] and tried["head"] == 1
        assert client.versions()["head"] == 1 and len(client.edits()["edits"]) == 2
        with pytest.raises(ErrataError) as lost:
            client.rollback(0, expected_head=7)
        assert (lost.value.status, lost.value.code) == (409, "head_moved") and client.versions()["head"] == 1
        assert client.rollback(0, expected_head=1)["version"] == 0 and client.versions()["head"] == 0
        assert client.diff(0, 1)["added"] == made["edits"]
        assert client.blame("p")["version"] == 0
        reverted = client.revert(answer["ids"], mode="subtract")
        assert (reverted["reverted"], reverted["mode"]) == (answer["ids"], "subtract")
        with pytest.raises(ErrataError, match="the live version is 2, and not 0"):
            client.revert(versions=[1], expected_head=0)
        assert client.revert(versions=[1])["reverted"] == answer["ids"]
        (made_later, refused) = client.propose([EDIT, EDIT], "k")
        assert [one["id"] for one in client.propose([EDIT, EDIT], "k")] == [made_later["id"], refused["id"]]
        assert [one["id"] for one in client.proposals("open", 1, after=0)["proposals"]] == [made_later["id"]]
        assert client.approve(made_later["id"])["state"] == client.proposal(made_later["id"])["state"] == "approved"
        assert client.refuse(refused["id"], "no source")["reason"] == "no source"
        with pytest.raises(ErrataError) as lost:
            client.approve(refused["id"])
        assert (lost.value.status, lost.value.code) == (409, "already_decided")
        assert client.status()["queue"]["depth"] == 0
        assert client.models() == ["errata"]
        assert client.complete(["a", "b"])["choices"][1]["text"] == " b!"


def test_a_refused_edit_raises_with_the_states_of_all(service: Service) -> None:
    with Client(service.url) as client, pytest.raises(ErrataError, match="break the model") as refused:
        client.edit([EDIT, {**EDIT, "target": UNMADE}])
    assert refused.value.status == 422
    assert [edit["state"] for edit in refused.value.answer["edits"]] == ["applied", "rejected"]
    assert (refused.value.edit, refused.value.code) == (refused.value.answer["ids"][1], "guard.perplexity")
    assert [edit.get("says") for edit in refused.value.answer["edits"]] == [None, SAYS]


def test_a_refusal_without_the_models_answer_is_read(service: Service) -> None:
    """An earlier release of the service does not send `says`."""
    rejected = {"id": "a", "state": "rejected", "edit": EDIT, "created": 1.0, "reason": "no"}
    body = {"ids": ["a"], "edits": [rejected], "error": {"message": "no", "code": None, "field": None, "edit": "a"}}
    service.troubles.coming.append(Answer(422, {}, json.dumps(body)))
    with Client(service.url) as client, pytest.raises(ErrataError, match="no") as refused:
        client.edit([EDIT])
    assert refused.value.answer["edits"] == [rejected] and refused.value.code is None


def test_all_faults_of_a_post_are_given(service: Service) -> None:
    with Client(service.url) as client, pytest.raises(ErrataError) as refused:
        client.edit([EDIT, {**EDIT, "target": UNQUEUED}, {**EDIT, "target": UNQUEUED}])
    assert refused.value.code == "too_long"
    assert [(fault["edit"], fault["field"], fault["code"]) for fault in refused.value.faults] == [
        (1, "target", "too_long"),
        (2, "target", "too_long"),
    ]


def test_a_lone_surrogate_is_refused_by_the_service(service: Service) -> None:
    with pytest.raises(ErrataError, match="HTTP 4") as refused:
        Client(service.url).edit([{**EDIT, "target": "\ud800"}])
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


def test_pages_are_joined(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    with Client(service.url) as client:
        ids = [client.edit([{**EDIT, "target": str(number)}])["ids"][0] for number in range(5)]
        assert [edit["id"] for edit in client.each_edit()] == ids[::-1]
        assert [version["version"] for version in client.each_version()] == [5, 4, 3, 2, 1, 0]
        first = client.edits("applied", limit=3)
        assert [edit["id"] for edit in client.edits("applied", 3, first["next"])["edits"]] == ids[1::-1]
        assert [version["version"] for version in client.versions(2, before=4)["versions"]] == [2, 3]
        assert client.edits("rejected")["edits"] == [] and client.edits("rejected")["next"] is None


def test_the_edits_of_a_subject_are_joined(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    with Client(service.url) as client:
        about = {"prompt": "Who leads Kurk?", "subject": "Kurk", "source": "the minutes", "valid_from": "2020-05-01"}
        ids = [client.edit([{**about, "target": str(number)}, EDIT])["ids"][0] for number in range(3)]
        assert [edit["id"] for edit in client.each_edit(subject="Kurk")] == ids[::-1]
        assert client.edits(subject="Prais")["edits"] == [] and client.edits("rejected", subject="Kurk")["edits"] == []
        assert client.edit_status(ids[0])["edit"] == {**about, "target": "0", "id": ids[0]}
        with pytest.raises(ErrataError) as refused:
            client.edit([{**about, "target": "x", "valid_to": "2020-05-01"}])
        assert (refused.value.code, refused.value.answer["error"]["field"]) == ("invalid_period", "valid_to")


def test_a_revert_is_tried(service: Service) -> None:
    with Client(service.url) as client:
        made = client.edit([EDIT])
        found = client.dry_run_revert(made["ids"], expected_head=1)
        assert found["publish"] and found["reverted"] == made["ids"] and service.backend.head == 1
        with pytest.raises(ErrataError) as refused:
            client.dry_run_revert(made["ids"], expected_head=0)
        assert (refused.value.status, refused.value.code) == (409, "head_moved")


def test_a_service_that_is_not_ready_raises_nothing(service: Service) -> None:
    client = Client(service.url)
    assert client.ready()["ready"]
    service.backend.reasons = ["replica b has version 3"]
    assert client.ready() == {"ready": False, "reasons": ["replica b has version 3"]}
    service.troubles.coming.append(Answer(503, {}, "no replica"))
    assert client.ready() == {"ready": False, "reasons": ["no replica"]}
    service.troubles.coming.append(Answer(404, {}, "{}"))
    with pytest.raises(ErrataError):
        client.ready()


def test_another_server_is_recognised(service: Service) -> None:
    service.troubles.coming.append(Answer(200, {}, "<html>hello</html>"))
    with pytest.raises(ErrataError, match="is not Errata"):
        Client(service.url).status()


@pytest.mark.parametrize("wrong", ["", "a/b", "../versions", "a?b", "é"])
def test_an_id_cannot_be_another_path(service: Service, wrong: str) -> None:
    with pytest.raises(ValueError, match="not the id of an edit"):
        Client(service.url).edit_status(wrong)
    assert service.troubles.seen == []


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://name:secret@host", "secret@host"])
def test_an_invalid_address_is_refused_without_showing_a_key(url: str) -> None:
    with pytest.raises(ValueError, match="address") as refused:
        Client(url)
    assert "secret" not in str(refused.value)


# -- repeating --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [NOT_NOW, Answer(503), Answer(429, {"Retry-After": "0"}), Cut(0)])
def test_an_edit_is_posted_again_and_made_once(service: Service, trouble: Answer | Cut) -> None:
    service.troubles.coming.extend([trouble, trouble])
    waited: list[float] = []
    client = Client(service.url, on_wait=lambda wait_s, why: waited.append(wait_s))
    assert client.edit([EDIT])["version"] == 1
    assert len(waited) == 2 and len(service.queued) == 1
    assert len({key for key, _, _ in service.backend.posts}) == 1


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path, max_queue=2) as service:
        service.backend.held = True
        waited: list[str] = []

        def make_room(wait_s: float, why: str) -> None:
            waited.append(why)
            service.make()

        client = Client(service.url, on_wait=make_room)
        client.edit([EDIT, EDIT], wait=False)
        assert client.edit([EDIT])["edits"][0]["state"] == "applied"
        assert len(waited) == 1 and "HTTP 429" in waited[0]


def test_only_idempotent_requests_are_repeated(service: Service) -> None:
    client = Client(service.url)
    client.edit([EDIT])
    service.troubles.coming.append(NOT_NOW)
    assert client.status()["head"] == 1
    service.troubles.coming.append(NOT_NOW)
    with pytest.raises(ErrataError, match="restarted"):
        client.revert(versions=[1])
    service.troubles.coming.append(NOT_NOW)  # it may come after the head has moved, and others may have moved it since
    with pytest.raises(ErrataError, match="restarted"):
        client.rollback(0)
    assert service.troubles.seen.count(("POST", "/v1/rollback")) == 1
    service.troubles.coming.append(Answer(429, {"Retry-After": "0"}))
    assert client.rollback(0)["version"] == 0
    for call in (client.status, lambda: client.rollback(0)):
        service.troubles.coming.append(Cut(0))
        with pytest.raises(Unreachable):
            call()
    service.troubles.coming.append(Answer(503))
    with pytest.raises(ErrataError):
        client.status()


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 413, 422])
def test_a_wrong_request_is_not_repeated(service: Service, code: int) -> None:
    service.troubles.coming.append(Answer(code, {"Retry-After": "0"}))
    with pytest.raises(ErrataError, match=f"HTTP {code}"):
        Client(service.url).edit([EDIT])
    assert len(service.troubles.seen) == 1


def test_repeating_ends_after_retry_s(service: Service) -> None:
    service.troubles.coming.append(Answer(429, {"Retry-After": "3600"}))
    began = time.monotonic()
    with pytest.raises(ErrataError) as refused:
        Client(service.url).edit([EDIT])
    assert refused.value.retry_after_s == 3600 and time.monotonic() - began < 5
    tries: list[str] = []
    absent = Client(f"http://127.0.0.1:{free_port()}", retry_s=0.3, on_wait=lambda wait_s, why: tries.append(why))
    with pytest.raises(Unreachable, match="does not answer"):
        absent.edit([EDIT])
    assert len(tries) >= 2
    with pytest.raises(Unreachable):
        absent.versions()


# -- events -----------------------------------------------------------------------------------------------------------


def test_an_edit_is_followed_over_a_broken_stream(service: Service) -> None:
    service.backend.held = True
    client = Client(service.url)
    (edit_id,) = client.edit([EDIT], wait=False)["ids"]
    service.troubles.coming.extend([Cut(1), Cut(0)])
    events = client.events(edit_id)
    assert next(events).name == "queued"
    rest = threading.Timer(0.3, service.make)
    rest.start()
    seen = [(event.name, event.data.get("version")) for event in events]
    assert seen in ([("applying", None), ("applied", 1)], [("applied", 1)])
    rest.join()
    assert [event.name for event in client.events(edit_id)] == ["applied"]


def test_watch_reconnects_and_reports_it(service: Service) -> None:
    client = Client(service.url)
    service.troubles.path = "/v1/events"
    service.troubles.coming.extend([Cut(2), Answer(503, {"Retry-After": "0"})])
    seen: list[Event] = []
    watched = threading.Event()

    def watch() -> None:
        for event in client.watch():
            seen.append(event)
            watched.set()
            if event.name == "head" and event.data["head"] == 3:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    number = 0
    while thread.is_alive() and number < 200:
        if service.backend.event_bus.has_listeners:
            number += 1
            service.backend.held = False
            if len(service.backend.chain) <= 3:
                client.edit([{**EDIT, "target": str(number)}])
            else:
                client.rollback(3)
        time.sleep(0.05)
    thread.join(timeout=5)
    names = [event.name for event in seen]
    assert not thread.is_alive() and names.count("reconnected") == 1 and {"edit", "version"} & set(names)


def test_a_stream_that_cannot_begin_says_why(service: Service) -> None:
    client = Client(service.url)
    with pytest.raises(ErrataError, match="404"):
        next(client.events("abc"))
    service.troubles.coming.append(Answer(403))
    with pytest.raises(ErrataError, match="403"):
        next(client.watch())
    with pytest.raises(Unreachable):
        next(Client(f"http://127.0.0.1:{free_port()}").watch())
    for headers in ({}, {"Content-Type": "text/event-stream"}):
        service.troubles.coming.append(Answer(200, headers, "data: {\n\n"))
        with pytest.raises(ErrataError, match="is not Errata"):
            next(client.watch())


def test_watching_gives_up_on_a_service_that_stays_away(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        client = Client(service.url, retry_s=0.5)
        client.edit([EDIT])
        events = client.watch()
        assert next(events) == Event("listening", {"head": 1})
        client.rollback(0)
        assert next(events).name == "head"
    with pytest.raises(Unreachable):
        next(events)


STREAM = ': ping\n\nevent: head\r\ndata: {"a":\r\ndata: 1}\r\n\r\nid: 3\nretry\ndata:"x\u2028\x85é"\n\nevent: none\n\ndata: 1\n'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_wherever_the_bytes_are_cut(size: int) -> None:
    data = STREAM.encode()
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=iter(chunks))
    assert list(events_of(response)) == [Event("head", {"a": 1}), Event("message", "x\u2028\x85é")]


# -- the key ----------------------------------------------------------------------------------------------------------


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_the_key_is_sent_and_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "keys.json"
    key = add_key(file, "ann", "edit")
    errors: list[ErrataError] = []

    def refused(client: Client, *, name: str, **options: Any) -> None:
        with pytest.raises(ErrataError) as raised:
            getattr(client, name)(**options)
        errors.append(raised.value)

    with serving(tmp_path, file) as service:
        client = Client(service.url, key)
        assert client.edit([EDIT])["edits"][0]["poster"] == "ann"
        refused(client, name="rollback", version=0)
        refused(Client(service.url, key[:-1] + "*"), name="status")
        refused(Client(service.url), name="status")
        service.troubles.coming.append(Cut(0))
        refused(client, name="status")
    refused(Client(f"http://127.0.0.1:{free_port()}", key, retry_s=0.1), name="edit", edits=[EDIT])
    assert [error.status for error in errors] == [403, 401, 401, 0, 0]
    shown = [repr(client), repr(client._http), caplog.text, json.dumps([str(error) for error in errors])]
    shown += [repr(part) for error in errors for part in chain_of(error)]
    assert not any(key[:-1] in text for text in shown)
    assert all(not hasattr(part, "request") for error in errors for part in chain_of(error))


@pytest.mark.parametrize("key", ["secret\n", "two secrets", "secrèt", "\tsecret"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(key: str) -> None:
    with pytest.raises(ValueError, match="which no key does") as refused:
        Client(key=key)
    assert key.strip() not in str(refused.value)
