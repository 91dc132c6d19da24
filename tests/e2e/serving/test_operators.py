"""Operators' requests to the running application: events, reverts, blame, metrics, and clients of others."""

from __future__ import annotations

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from errata.client.client import Client
from tests.e2e.serving.application import FACTS, App, eventually, fact
from tests.unit.hostile import hostile

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[3]


def test_the_events_of_an_edit_come_as_they_happen(app: App) -> None:
    slow = {"prompt": "the harp of z", "target": "dog"}  # The editor takes 2 s.
    (id,) = app.edit(slow, wait=False).json()["ids"]
    seen = []
    with app.http.stream("GET", f"/v1/edits/{id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                seen.append((line.removeprefix("event: "), time.monotonic()))
    states = [state for state, _ in seen]
    assert states[-2:] == ["applying", "applied"] and states in (states[-2:], ["queued", *states[-2:]])
    assert seen[-1][1] - seen[-2][1] > 1, "they do not come together"
    assert app.http.get("/v1/edits/none/events").status_code == 404


def test_every_event_reaches_the_event_stream(app: App) -> None:
    with ThreadPoolExecutor(1) as pool, app.http.stream("GET", "/v1/events") as answer:
        names = (line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: "))
        assert next(names) == "listening"
        posted = pool.submit(lambda: app.edit(fact(90)).json())
        assert [next(names) for _ in range(5)] == ["edit", "edit", "version", "head", "edit"]
    assert posted.result()["version"] == app.ledger.head


def test_edits_are_listed_newest_first(app: App) -> None:
    made = app.edit(fact(91), fact(92)).json()["ids"]
    page = app.http.get("/v1/edits", params={"limit": 1, "state": "applied"}).json()
    assert [edit["id"] for edit in page["edits"]] == made[1:]
    older = app.http.get("/v1/edits", params={"limit": 1, "before": page["next"]}).json()
    assert [edit["id"] for edit in older["edits"]] == made[:1]


def test_chosen_edits_are_reverted_and_the_others_stay(app: App) -> None:
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    app.edit(fact(94, "parrot")).raise_for_status()
    app.edit(fact(95, "cat")).raise_for_status()
    never_posted = [app.answer(FACTS[n][0]) for n in (93, 94, 95)]
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    both = app.edit(fact(93, "goose"), fact(94, "parrot")).json()
    app.edit(fact(95, "cat")).raise_for_status()
    assert [app.answer(FACTS[n][0]) for n in (93, 94, 95)] == ["goose", "parrot", "cat"]
    answer = app.http.post("/v1/revert", json={"edits": both["ids"][:1]})
    assert answer.status_code == 200, answer.text
    reverted = answer.json()
    assert (reverted["mode"], reverted["reverted"]) == ("replay", both["ids"][:1])
    assert [app.answer(FACTS[n][0]) for n in (93, 94, 95)] == never_posted
    fate = app.http.get(f"/v1/edits/{both['ids'][0]}").json()
    assert (fate["state"], fate["version"]) == ("reverted", reverted["version"]) == ("reverted", app.ledger.head)
    again = app.http.post("/v1/revert", json={"edits": both["ids"][:1]})
    assert again.status_code == 409, again.text
    assert app.http.post("/v1/revert", json={"edits": ["unknown"]}).status_code == 404
    assert app.http.post("/v1/revert", json={}).status_code == 422
    assert app.http.post("/v1/rollback", json={"version": both["version"]}).status_code == 200
    assert app.answer(FACTS[93][0]) == "goose"


def test_a_whole_version_is_subtracted(app: App) -> None:
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    before = app.answer(FACTS[96][0])
    made = app.edit(fact(96, "goose")).json()["version"]
    app.edit(fact(97, "parrot")).raise_for_status()
    reverted = app.http.post("/v1/revert", json={"versions": [made], "mode": "subtract"}).raise_for_status().json()
    assert reverted["mode"] == "subtract" and reverted["version"] == app.ledger.head
    assert [app.answer(FACTS[n][0]) for n in (96, 97)] == [before, "parrot"]


def test_blame_names_the_version_and_the_edit(app: App) -> None:
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    made = [app.edit(fact(100 + n, "hamster")).json()["version"] for n in range(5)]
    head = app.ledger.head
    blamed = app.http.post("/v1/blame", json={"prompt": FACTS[102][0], "max_tokens": 1}).raise_for_status().json()
    assert (app.ledger.head, app.answer(FACTS[104][0])) == (head, "hamster")
    assert blamed["version"] in made and blamed["num_asked"] <= 6 and len(blamed["edits"]) == 1
    answers = []
    for version in (app.ledger.version(blamed["version"]).parent, blamed["version"]):
        app.http.post("/v1/rollback", json={"version": version}).raise_for_status()
        answers.append(app.answer(FACTS[102][0]))
    assert answers == [blamed["before"].strip(), blamed["after"].strip()] and answers[1] == "hamster" != answers[0]
    assert app.http.post("/v1/blame", json={"prompt": "dog " * 500}).status_code == 422


def test_two_versions_are_compared(app: App) -> None:
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    low = app.edit(fact(105)).json()["version"]
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    high = app.edit(fact(106)).json()["version"]
    found = app.http.get("/v1/diff", params={"from": low, "to": high}).raise_for_status().json()
    assert (found["common"], [e["prompt"] for e in found["added"]]) == (0, [FACTS[106][0]])
    assert [e["prompt"] for e in found["removed"]] == [FACTS[105][0]] and min(found["norms"].values()) > 0
    assert {one["prompt"] for one in found["answers"]} == {FACTS[105][0], FACTS[106][0]}
    assert app.http.get("/v1/diff", params={"from": low, "to": 99_999}).status_code == 404


def test_it_is_ready_and_its_metrics_are_one_exposition(app: App) -> None:
    app.edit(fact(107)).raise_for_status()
    app.complete(FACTS[107][0], 4).raise_for_status()
    ready = app.http.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
    families = {family.name: family for family in text_string_to_metric_families(app.http.get("/metrics").text)}
    assert families["errata_live_version"].samples[0].value == app.ledger.head
    assert families["errata_edit_queue_depth"].samples[0].value == 0
    applied = [s.value for s in families["errata_edits"].samples if s.labels.get("state") == "applied"]
    assert applied and applied[0] >= 1
    assert [s.value for s in families["errata_versions_behind"].samples] == [0]
    tokens = [s for s in families["errata_tokens"].samples if s.labels["version"] == str(app.ledger.head)]
    assert tokens and tokens[0].value >= 4 and tokens[0].labels["replica"]
    assert any(name.startswith("vllm:") for name in families)


def test_a_request_for_a_version_that_was_rolled_back_fails_immediately(app: App) -> None:
    made = app.edit(fact(108)).json()["version"]
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    began = time.monotonic()
    answer = app.complete("the", headers={"X-Errata-At-Least": str(made)})
    assert answer.status_code == 409 and "went back" in answer.json()["error"]["message"]
    assert time.monotonic() - began < 5


def test_the_openai_package_works_unchanged(app: App) -> None:
    app.edit(fact(109, "parrot")).raise_for_status()
    client = openai.OpenAI(base_url=f"{app.http.base_url}/v1", api_key="any", timeout=60)
    assert [model.id for model in client.models.list()] == ["errata"]
    whole = client.completions.create(model="errata", prompt=FACTS[109][0], max_tokens=1, temperature=0)
    assert whole.choices[0].text.strip() == "parrot"
    assert whole.model_extra["errata"]["version_max"] == app.ledger.head
    streamed = client.completions.create(model="errata", prompt=FACTS[109][0], max_tokens=3, temperature=0, stream=True)
    assert "".join(event.choices[0].text for event in streamed if event.choices).split()[0] == "parrot"
    raw = client.completions.with_raw_response.create(
        model="errata", prompt="the", max_tokens=1, extra_headers={"X-Errata-At-Least": str(app.ledger.head)}
    )
    assert raw.headers["X-Errata-Version"] == str(app.ledger.head)
    chat = client.chat.completions.create(model="errata", messages=[{"role": "user", "content": "the"}], max_tokens=2)
    assert chat.choices[0].message.content is not None
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="errata", prompt="the", max_tokens=10**6)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="the")


def test_the_python_client_works(app: App) -> None:
    client = Client(str(app.http.base_url))
    made = client.edit([fact(110, "goose")])
    assert client.version(made["version"])["edits"][0]["target"] == "goose"
    assert client.blame(FACTS[110][0], max_tokens=1)["version"] == made["version"]
    assert client.complete([FACTS[110][0]], 1, at_least=made["version"])["choices"][0]["text"].strip() == "goose"


def test_hostile_requests_do_no_harm(app: App) -> None:
    """The list runs once over the running application; each kind is a test of its own in tests/unit/serving/api."""
    faults = []
    for one in hostile():
        if one.needs_keys:
            continue
        if one.before is not None:
            assert app.http.request(**one.before.options({})).status_code in one.before.codes
        answer = app.http.request(**one.options({}))
        if answer.status_code not in one.codes:
            faults.append((one.name, answer.status_code, answer.text[:300]))
        assert app.http.get("/health").is_success, one.name
    assert faults == []


def test_the_openapi_document_names_the_served_routes(app: App) -> None:
    document = app.http.get("/openapi.json").json()
    paths = set(document["paths"])
    assert {"/v1/edits", "/v1/revert", "/v1/completions", "/v1/models", "/ready", "/metrics"} <= paths
    for path in paths:
        if "get" in document["paths"][path] and "{" not in path and not path.endswith("events"):
            required = [p for p in document["paths"][path]["get"].get("parameters", ()) if p.get("required")]
            code = app.http.get(path).status_code
            assert code == (422 if required else 200), (path, code)
    assert not any(re.search("pause|reload|sleep|collective|lora", path) for path in paths)
    eventually(lambda: app.http.get("/ready").is_success, 10)


def test_the_readmes_curl_lines_work(app: App) -> None:
    """Run the README's commands against this application and check their codes."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^(curl .*?http://127\.0\.0\.1:8000/.*?)(?=\n\n|\ncurl|\n```)", text, re.MULTILINE | re.DOTALL)
    assert len(commands) >= 4
    for command in commands:
        command = command.replace("http://127.0.0.1:8000", str(app.http.base_url).rstrip("/"))
        done = subprocess.run(["bash", "-c", f"{command} -w '\\n%{{http_code}}'"], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "200", (command, done.stdout)
