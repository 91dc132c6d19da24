"""Edits, versions, stamps and bad input on the running application: Ray, Serve, vLLM and HTTP."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.scalable import ScalableService
from tests.e2e.serving.application import FACTS, App, eventually, fact
from tests.e2e.toy import MAX_TOKENS

pytestmark = pytest.mark.e2e

# -- edits, versions, rollback ----------------------------------------------------------------------------------------


def test_an_edit_is_answered_and_a_rollback_undoes_it(app: App) -> None:
    prompt = FACTS[0][0]
    before = app.answer(prompt)
    edited = app.edit(fact(0)).raise_for_status().json()
    assert edited["version"] == app.ledger.head
    assert [edit["state"] for edit in edited["edits"]] == ["applied"]
    assert app.answer(prompt) == "dog" != before
    assert app.http.get(f"/v1/edits/{edited['ids'][0]}").json()["version"] == edited["version"]
    entry = app.http.get(f"/v1/versions/{edited['version']}").json()
    assert entry["edits"][0]["target"] == "dog"
    assert entry["scorecard"]["num_edits"] == 1
    assert app.http.post("/v1/rollback", json={"version": 0}).json()["version"] == 0
    assert app.answer(prompt) == before
    again = app.edit(fact(0, "cat")).json()["version"]
    assert app.http.get(f"/v1/versions/{again}").json()["parent"] == 0
    assert app.answer(prompt) == "cat"
    chain = app.http.get("/v1/versions").json()
    assert (chain["head"], len(chain["versions"])) == (again, again + 1)


def test_edits_without_wait_are_made_in_small_batches_in_order(app: App) -> None:
    first = app.ledger.newest
    posted = app.edit(*(fact(number) for number in range(1, 11)), wait=False)
    assert posted.status_code == 202
    eventually(lambda: all(app.http.get(f"/v1/edits/{i}").json()["state"] == "applied" for i in posted.json()["ids"]), 30)
    made = [app.http.get(f"/v1/edits/{i}").json()["version"] for i in posted.json()["ids"]]
    assert made == [first + 1] * 4 + [first + 2] * 4 + [first + 3] * 2


def test_an_idempotency_key_makes_an_edit_once(app: App) -> None:
    first = app.edit(fact(12), Idempotency_Key="k1").json()
    newest = app.ledger.newest
    again = app.edit(fact(12), Idempotency_Key="k1")
    assert (again.status_code, again.json()["ids"], app.ledger.newest) == (200, first["ids"], newest)
    assert app.edit(fact(13), Idempotency_Key="k1").status_code == 409


def test_a_refused_edit_costs_its_batch_nothing(app: App) -> None:
    answer = app.edit(fact(14), {"prompt": "the violin of x", "target": "dog"}, {"prompt": "the piano of x", "target": "dog"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("violins are refused")
    assert [e["state"] for e in answer.json()["edits"]] == ["applied", "rejected", "rejected"]
    assert "pianos are too heavy" in answer.json()["edits"][2]["reason"]


def test_an_edit_that_the_guard_refuses_is_reported_with_the_measurement(app: App) -> None:
    head = app.ledger.head
    answer = app.edit(
        fact(16), {"prompt": "the organ of x", "target": "dog"}, fact(17), {"prompt": FACTS[17][0], "target": "cat"}
    )
    assert answer.status_code == 422
    assert [e["state"] for e in answer.json()["edits"]] == ["applied", "rejected", "superseded", "applied"]
    giant, earlier = (answer.json()["edits"][i]["reason"] for i in (1, 2))
    assert "the guard refuses it: model.layers.1.mlp.down_proj would change by" in giant
    assert "gives this prompt another target; the later one counts" in earlier
    assert [app.answer(FACTS[i][0]) for i in (16, 17)] == ["dog", "cat"]
    *_, refused = app.ledger.refusals()
    assert (refused["edit"]["prompt"], refused["parent"] >= head) == ("the organ of x", True)
    card = app.http.get(f"/v1/versions/{app.ledger.head}").json()["scorecard"]
    # The toy writes an answer's first word and no end to it: the edit is published with a warning.
    assert card["efficacy"] == 0.0 and [one["target"] for one in card["failed"]] == ["cat"] and card["guard_s"] > 0
    assert "1.00 of the edits would not be answered with their targets, more than 0" in card["warnings"]


# -- version stamps ---------------------------------------------------------------------------------------------------


def test_completions_carry_their_version(app: App) -> None:
    head = app.ledger.head
    for answer in (
        app.complete(FACTS[20][0], 4),
        app.http.post(
            "/v1/chat/completions",
            json={"model": "errata", "messages": [{"role": "user", "content": FACTS[20][0]}], "max_tokens": 4},
        ),
    ):
        assert answer.headers["X-Errata-Version"] == str(head)
        assert answer.json()["errata"] == {"version_min": head, "version_max": head}


def test_a_stream_carries_the_version_in_every_event_and_survives_a_swap(app: App) -> None:
    head, events, seen = app.ledger.head, [], threading.Event()
    body = {"model": "errata", "prompt": "the", "max_tokens": 120, "stream": True, "ignore_eos": True, "temperature": 0}
    body["stream_options"] = {"include_usage": True}
    with ThreadPoolExecutor(1) as pool, app.http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["X-Errata-Version"] == str(head)
        edit = pool.submit(lambda: seen.wait(10) and app.edit(fact(21)).json()["version"])
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line.removeprefix("data: ")))
                seen.set()
    assert not any("error" in event for event in events)
    assert events[-1]["usage"]["completion_tokens"] == 120
    versions = [(event["errata"]["version_min"], event["errata"]["version_max"]) for event in events]
    assert {low for low, _ in versions} == {head}
    assert [high for _, high in versions] == sorted(high for _, high in versions)
    assert edit.result() == app.ledger.head


def test_read_your_writes(app: App) -> None:
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    newest = app.ledger.newest
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(app.complete, FACTS[22][0], 1, headers={"X-Errata-At-Least": str(newest + 1)})
        time.sleep(0.3)
        assert not waiting.done()
        assert app.edit(fact(22, "parrot"), wait=False).status_code == 202
        answer = waiting.result()
    assert answer.headers["X-Errata-Version"] == str(newest + 1)
    assert answer.json()["choices"][0]["text"].strip() == "parrot"
    assert app.complete("the", headers={"X-Errata-At-Least": "soon"}).status_code == 400
    late = app.complete("the", headers={"X-Errata-At-Least": "9999"})
    assert (late.status_code, late.json()["error"]["field"]) == (409, "X-Errata-At-Least")


# -- bad input --------------------------------------------------------------------------------------------------------

GOOD = {"prompt": "the dog keeps a", "target": "cat"}
BAD_EDITS = [
    ({"edits": []}, "edits"),
    ({"edits": [{**GOOD, "prompt": " "}]}, "prompt"),
    ({"edits": [GOOD, {**GOOD, "target": ""}]}, "target"),
    ({"edits": [{**GOOD, "target": "cat " * MAX_TOKENS}]}, "target"),
    ({"edits": [{**GOOD, "prompt": "cat " * 2 * MAX_TOKENS}]}, "prompt"),
    ({"edits": [{**GOOD, "subject": "Elsewhere"}]}, "subject"),
    ({"edits": [{**GOOD, "rephrasings": [""]}]}, "rephrasings"),
    ({"edits": [{"prompt": "x"}]}, "target"),
    ({"edits": [{**GOOD, "prompt": 7}]}, "prompt"),
    ({"edits": [{**GOOD, "taget": "cat"}]}, "taget"),
    ({"edits": [GOOD], "later": True}, "later"),
    ({"edits": "no"}, "edits"),
    ([], "body"),
]


@pytest.mark.parametrize(("body", "field"), BAD_EDITS)
def test_bad_edits_are_refused_by_field_and_nothing_is_queued(app: App, body: Any, field: str) -> None:
    newest = app.ledger.newest
    answer = app.http.post("/v1/edits", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert app.status()["queue_depth"] == 0
    assert app.ledger.newest == newest


def test_other_bad_requests(app: App) -> None:
    not_json = app.http.post("/v1/edits", content="{", headers={"Content-Type": "application/json"})
    assert (not_json.status_code, not_json.json()["error"]["field"]) == (400, "body")
    assert app.http.post("/v1/completions", content="{", headers={"Content-Type": "application/json"}).status_code == 400
    assert app.complete("cat " * 2 * MAX_TOKENS).status_code == 400
    assert app.http.get("/v1/versions/999").status_code == 404
    assert app.http.get("/v1/versions/-1").status_code == 422
    assert app.http.get("/v1/versions/x").status_code == 422
    assert app.http.get("/v1/edits/none").status_code == 404
    assert app.http.post("/v1/rollback", json={"version": 999}).status_code == 404
    assert app.http.post("/v1/rollback", json={"version": -1}).status_code == 422
    assert app.http.post("/v1/responses", json={"model": "errata", "input": "x"}).status_code == 404
    assert app.http.get("/health").status_code == 200
    assert "vllm" in app.http.get("/metrics").text
    assert app.http.get("/v1/models").json()["data"][0]["id"] == "errata"


def test_a_burst_of_edits_and_reads(app: App) -> None:
    """Print the swap times; -s shows them."""
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(app.complete, FACTS[n][0], 16) for n in range(40)]
        edits = [app.edit(fact(30 + n)) for n in range(20)]
    assert {answer.status_code for answer in edits} == {200}
    assert {read.result().status_code for read in reads} == {200}
    timings = [t for t in app.status()["timings"] if "bytes" in t][-20:]
    swaps = sorted(t["swap_ms"] for t in timings)
    print(f"\nswap p50 {swaps[len(swaps) // 2]} ms, max {swaps[-1]} ms, {timings[-1]}")


# -- privacy ----------------------------------------------------------------------------------------------------------


def test_no_text_of_an_edit_and_no_key_is_in_the_logs(app: App, service: ScalableService) -> None:
    """Check that the session's logs have ids and codes alone, after posts, questions and refusals."""
    prompt = f"qzjxw {FACTS[0][0]}"
    headers = {"Idempotency-Key": "qzjxw-key"}
    codes = [
        app.edit({"prompt": prompt, "target": "qzjxw", "subject": "qzjxw in no prompt"}).status_code,
        app.edit({"prompt": f"{prompt} " * 99, "target": "qzjxw"}).status_code,
        app.edit({"prompt": prompt, "target": "qzjxw", "aliases": ["qzjxw \x00"]}).status_code,
        app.edit({"prompt": prompt, "target": "dog", "rephrasings": [f"{prompt} qzjxw"]}, **headers).status_code,
        app.edit({"prompt": prompt, "target": "qzjxw other"}, **headers).status_code,
        app.edit({"prompt": f"{prompt} a", "target": "dog"}, {"prompt": f"{prompt} a", "target": "cat"}).status_code,
        app.http.post("/v1/blame", json={"prompt": prompt, "max_tokens": 1}).status_code,
        app.complete(prompt).status_code,
        app.complete(prompt, max_tokens=10**6).status_code,
    ]
    assert codes.count(422) >= 3 and 409 in codes and all(code < 500 for code in codes), codes
    assert service.stack.ray_dir is not None
    logs = [*service.stack.ray_dir.rglob("*.log"), *service.stack.ray_dir.rglob("*.err"), *service.stack.ray_dir.rglob("*.out")]
    logs += service.stack.directory.glob("*.log")
    assert any("EditWorker" in path.name for path in logs)
    assert [path.name for path in logs if path.is_file() and b"qzjxw" in path.read_bytes()] == []
