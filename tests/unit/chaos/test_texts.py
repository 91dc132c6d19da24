"""The requests whose texts no log may hold: every route that takes a text gets one, and none makes a version."""

from __future__ import annotations

import httpx

from serving.api.access import role_for
from tests.chaos.texts import requests, send_texts
from tests.chaos.workload import TEXTS


def test_every_request_has_a_text_and_goes_to_a_listed_route() -> None:
    sent = list(requests())
    for path, body, headers in sent:
        assert any(text in f"{body!r} {headers}" for text in TEXTS), (path, body)
        assert role_for("POST", path.partition("?")[0]) in ("read", "edit") or path.startswith("/v1/revert")
    assert {path for path, *_ in sent} >= {"/v1/edits", "/v1/blame", "/v1/completions", "/v1/chat/completions", "/tokenize"}


def test_the_statuses_are_returned_and_the_key_is_sent_in_a_wrong_place() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(401 if request.method == "GET" else 422)

    with httpx.Client(
        base_url="http://x", headers={"Authorization": "Bearer k"}, transport=httpx.MockTransport(answer)
    ) as http:
        statuses = send_texts(http)
    assert statuses == [422] * len(list(requests())) + [401]
    assert seen[-1].headers["Authorization"] == "Basic k" and seen[0].headers["Authorization"] == "Bearer k"
    assert {request.headers["Content-Type"] for request in seen[:-1]} == {"application/json"}
