"""An edit worker that is killed during an edit; replicas are in test_replicas.py."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.e2e.serving.application import App, eventually, fact, is_whole

pytestmark = pytest.mark.e2e


def test_a_killed_edit_worker_loses_no_acknowledged_edit(app: App) -> None:
    pid = app.status()["worker"]["pid"]
    slow = {"prompt": "the harp of x", "target": "dog"}  # The editor takes 2 s, so that the kill comes during the edit.
    ids = app.edit(slow, *(fact(60 + n) for n in range(6)), wait=False).json()["ids"]
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_whole(app) and app.status()["worker"]["pid"] != pid)
    eventually(lambda: all(app.http.get(f"/v1/edits/{i}").json()["state"] == "applied" for i in ids), 60)
    found = [app.ledger.find_edit(i) for i in ids]
    assert None not in found
    assert sum(edit.id in ids for version in app.ledger.versions() for edit in version.edits) == len(ids)
    eventually(lambda: is_whole(app), 10)


@pytest.mark.long
def test_an_edit_that_kills_the_worker_is_rejected(app: App) -> None:
    (id,) = app.edit({"prompt": "the flute of x", "target": "dog"}, wait=False).json()["ids"]
    eventually(lambda: app.http.get(f"/v1/edits/{id}").json()["state"] == "rejected", 180)
    assert "died" in app.http.get(f"/v1/edits/{id}").json()["reason"]
    assert app.edit(fact(70)).status_code == 200
