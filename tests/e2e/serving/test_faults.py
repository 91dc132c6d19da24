"""Processes killed in the middle of their work."""

from __future__ import annotations

import os
import signal
import time

import httpx
import psutil
import pytest

from tests.e2e.serving.application import FACTS, App, eventually, fact, is_whole

pytestmark = pytest.mark.e2e


def test_the_edit_worker_is_killed_and_no_acknowledged_edit_is_lost(app: App) -> None:
    pid = app.status()["worker"]["pid"]
    slow = {"prompt": "the harp of x", "target": "dog"}  # 2 s in the editor, so that the kill comes in the middle
    ids = app.edit(slow, *(fact(60 + n) for n in range(6)), wait=False).json()["ids"]
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_whole(app) and app.status()["worker"]["pid"] != pid)
    eventually(lambda: all(app.http.get(f"/v1/edits/{i}").json()["state"] == "applied" for i in ids), 60)
    found = [app.ledger.find_edit(i) for i in ids]
    assert None not in found
    assert sum(edit.id in ids for version in app.ledger.versions() for edit in version.edits) == len(ids)
    eventually(lambda: is_whole(app), 10)


def test_an_edit_that_kills_the_worker_is_given_up_in_the_end(app: App) -> None:
    (id,) = app.edit({"prompt": "the flute of x", "target": "dog"}, wait=False).json()["ids"]
    eventually(lambda: app.http.get(f"/v1/edits/{id}").json()["state"] == "rejected", 180)
    assert "died" in app.http.get(f"/v1/edits/{id}").json()["reason"]
    assert app.edit(fact(70)).status_code == 200


def engine_pid(app: App) -> int:
    replica = psutil.Process(app.status()["replicas"][0]["pid"])
    return max(replica.children(recursive=True), key=lambda child: child.memory_info().rss).pid


@pytest.mark.parametrize("victim", [pytest.param("replica", marks=pytest.mark.long), "engine"])
def test_a_killed_generator_comes_back_at_the_head(app: App, victim: str) -> None:
    eventually(lambda: is_whole(app))
    old = app.status()["replicas"][0]["pid"]
    app.http.post("/v1/rollback", json={"version": 0}).raise_for_status()
    app.edit(fact(80, "goose")).raise_for_status()
    head, prompt = app.ledger.head, FACTS[80][0]
    body = {"model": "errata", "prompt": "the", "max_tokens": 120, "stream": True, "ignore_eos": True}
    pid = old if victim == "replica" else engine_pid(app)
    try:
        with app.http.stream("POST", "/v1/completions", json=body) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number == 0:
                    os.kill(pid, signal.SIGKILL)
    except httpx.HTTPError:
        pass  # the stream was cut: all that is asked is that the service comes back
    eventually(lambda: is_whole(app) and app.status()["replicas"][0]["pid"] != old)
    assert app.complete(prompt).headers["X-Errata-Version"] == str(head) == str(app.ledger.head)
    assert app.answer(prompt) == "goose"
    assert app.edit(fact(81)).status_code == 200
