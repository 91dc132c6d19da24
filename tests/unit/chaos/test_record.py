"""Records of the chaos runs: the heads of a real ledger in order, the journal over its pages, and the operations of clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from errata.ledger import Ledger
from errata.ledger.recovery import recover
from tests.chaos import workload
from tests.chaos.checks import violations
from tests.chaos.history import LOST, OUT_OF_USE, Chain, History, JournalRow
from tests.chaos.record import chain_of, rows_of
from tests.chaos.workload import REFUSED, Client, Recorder
from tests.unit.ledger.damage import DELTA, append, cut


def damaged(ledger: Ledger) -> None:
    cut(ledger.version(ledger.newest).directory / DELTA)
    recover(ledger)


def test_the_heads_of_a_ledger_are_found_in_order(ledger: Ledger, random_delta: Callable[..., Any]) -> None:
    seen = [ledger.head]

    def after(step: Callable[[], Any]) -> None:
        step()
        seen.append(ledger.head)

    for _ in range(3):
        after(lambda: append(ledger, random_delta))
    after(lambda: ledger.move_head(1))
    after(lambda: append(ledger, random_delta))
    after(lambda: damaged(ledger))  # Version 4 was live.
    after(lambda: append(ledger, random_delta))
    after(lambda: ledger.retract(5, 1))
    after(lambda: append(ledger, random_delta))
    after(lambda: ledger.move_head(3))
    damaged(ledger)  # Version 6 was not live, and the head stays.
    after(lambda: append(ledger, random_delta))
    chain = chain_of(ledger)
    assert [step.version for step in chain.heads] == seen and chain.head == ledger.head == 7
    assert {version.number: version.fate for version in chain.versions if version.fate} == {4: LOST, 5: LOST, 6: OUT_OF_USE}
    assert [edit.id for edit in chain.held(7)] == ["id-1", "id-2", "id-3", "id-6"]  # Named after the newest version then.
    assert [step.cause for step in chain.heads].count("move") == 2
    assert [step.cause for step in chain_of(ledger, num_earlier=1).heads].count("move") == 1, "one was before the clients"


def test_a_damaged_head_falls_back_behind_an_earlier_move(ledger: Ledger, random_delta: Callable[..., Any]) -> None:
    for _ in range(2):
        append(ledger, random_delta)
    ledger.move_head(1)
    append(ledger, random_delta)
    damaged(ledger)
    assert [step.version for step in chain_of(ledger).heads] == [0, 1, 2, 1, 3, 1] and ledger.head == 1


class Answers:
    """A service that answers each path, by its last word, with a status and a JSON."""

    def __init__(self, **by_path: Any) -> None:
        self.by_path = by_path

    def __call__(self, request: httpx.Request) -> httpx.Response:
        status, body = self.by_path[request.url.path.rpartition("/")[2]]
        return httpx.Response(status, json=body(request) if callable(body) else body, headers={"X-Errata-Version": "7"})


def client_of(answers: Callable[[httpx.Request], httpx.Response]) -> Client:
    client = Client(Recorder("http://x"), workload.look, 0.0, "seed")
    client.http = httpx.Client(base_url="http://x", transport=httpx.MockTransport(answers))
    return client


def test_the_journal_is_read_over_its_pages_oldest_first() -> None:
    rows = [{"id": f"{n}", "state": "applied", "version": n, "changed": n != 1, "edit": {"prompt": "p"}} for n in range(3)]
    rows[2]["edit"] = {"prompt": REFUSED}

    def page(request: httpx.Request) -> dict[str, Any]:
        before = int(request.url.params.get("before", 3))
        return {"edits": [rows[before - 1]], "next": before - 1 if before > 1 else None}

    answers = Answers(edits=(200, page))
    found = rows_of(httpx.Client(base_url="http://x", transport=httpx.MockTransport(answers)))
    assert found == (
        JournalRow(0, "0", "p", "applied", 0),
        JournalRow(1, "1", "p", "applied", 1, unchanged=True),
        JournalRow(2, "2", REFUSED, "applied", 2, may_be_refused=True),
    )


def test_a_post_is_repeated_under_its_key_until_it_is_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload.time, "sleep", lambda s: None)
    edits = [{"id": "a", "state": "applied", "changed": True}, {"id": "b", "state": "superseded"}]
    good = {"ids": ["a", "b"], "edits": edits, "version": 7}
    requests: list[httpx.Request] = []

    def answered(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(503, json={}) if len(requests) < 3 else httpx.Response(200, json=good)

    client = client_of(answered)
    client.draw.random = lambda: 0.9  # type: ignore[method-assign]  # No second sender, no wait.
    operation = workload.post(client)
    assert operation.succeeded and operation.answer == {"ids": ["a", "b"], "made": ["a"], "version": 7}
    assert len({request.headers["Idempotency-Key"] for request in requests}) == 1 and len(requests) == 3
    client.recorder.add(operation)
    assert client.recorder.ids == ["a", "b"] and client.recorder.num_acknowledged == 2


def test_a_move_that_fails_may_still_have_been_made() -> None:
    refused, failed = client_of(Answers(rollback=(409, {}))), client_of(Answers(rollback=(503, {})))
    for client in (refused, failed):
        client.draw.random = lambda: 0.4  # type: ignore[method-assign]
    found = [workload.move(refused), workload.move(failed)]
    assert [one is not None and one.end is None for one in found] == [False, True]
    made = client_of(Answers(revert=(200, {"version": 9}), rollback=(200, {"version": 9})))
    made.recorder.ids = ["a"]
    made.draw.random = lambda: 0.9  # type: ignore[method-assign]
    operation = workload.move(made)
    assert operation is not None and (operation.kind, operation.answer, operation.given["edits"]) == (
        "revert",
        {"version": 9},
        ["a"],
    )


def test_an_answer_is_recorded_with_the_version_that_admitted_it() -> None:
    body = {"choices": [{"text": " lizard"}], "errata": {"version_min": 7, "version_max": 8}}
    client = client_of(Answers(completions=(200, body)))
    operation = workload.ask(client)
    assert operation.answer == {"version": 7, "text": "lizard", "version_min": 7, "version_max": 8} and client.seen == 7
    gone = client_of(Answers(completions=(409, {"error": {}})))
    gone.seen = 5
    assert not workload.ask(gone).succeeded and gone.seen == 0


def test_a_look_and_a_walk_over_the_pages_are_checked() -> None:
    replica = {"replica": "r", "pid": 1, "version": 0}
    status = {"head": 0, "replicas": [replica], "answered_by": replica}
    client = client_of(Answers(status=(200, status), edits=(200, {"edits": [], "next": None})))
    found = [workload.look(client), workload.page(client)]
    assert found[0] is not None and found[0].answer == {"head": 0, "replicas": {"r 1": 0}}
    assert found[1] is not None and found[1].answer == {"ids": []}
    history = History(tuple(one for one in found if one is not None), Chain(()), ())
    assert not any(violations(history).values())
