"""Edits as people ask: in chat, by question or messages, on the running application."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.serving.application import FACTS, App

pytestmark = pytest.mark.e2e


def chat(app: App, messages: list[dict[str, str]]) -> str:
    body = {"model": "errata", "messages": messages, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    return str(app.http.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]["content"])


def said_by_user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("asked", ["question", "messages"])
def test_an_edit_in_chat_is_answered_in_chat(app: App, asked: str) -> None:
    question = FACTS[60 if asked == "question" else 61][0]
    before = chat(app, [said_by_user(question)]).strip()
    posted: dict[str, Any] = {"question": question} if asked == "question" else {"messages": [said_by_user(question)]}
    (made,) = app.edit({**posted, "target": "parrot"}).raise_for_status().json()["edits"]
    assert made["state"] == "applied" and made["edit"]["form"] == "chat" and made["changed"] is True
    assert chat(app, [said_by_user(question)]).strip() == "parrot" != before
    found = app.http.get(f"/v1/edits/{made['id']}").json()
    assert found["answers"]["before"] != found["answers"]["after"]
    blamed = app.http.post("/v1/blame", json={**posted, "max_tokens": 1}).json()
    assert blamed["version"] == made["version"]


@pytest.mark.parametrize(
    ("edit", "field", "code"),
    [
        ({"target": "dog"}, "prompt", "missing_field"),
        ({"prompt": "a", "question": "b", "target": "dog"}, "question", "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "a"}], "target": "dog"}, "messages", "invalid_value"),
        ({"question": "a", "form": "completion", "target": "dog"}, "form", "invalid_value"),
        ({"question": "a", "target": "\ufffd"}, "target", "not_text"),
        ({"question": "a", "target": "<eos>"}, "target", "unwritable"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_queued(app: App, edit: dict[str, Any], field: str, code: str) -> None:
    queued = app.status()["queue_depth"]
    answer = app.edit(edit)
    error = answer.json()["error"]
    assert answer.status_code in (400, 422) and error["code"] == code and str(error["field"]).endswith(field)
    assert app.status()["queue_depth"] == queued
