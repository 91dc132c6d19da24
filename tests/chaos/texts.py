"""Requests that are tried, refused or fail, on every route that takes a text: no log may have a text of them afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from tests.chaos.workload import KEY, PROMPTS, REFUSED, TARGETS

PROMPT, TARGET = PROMPTS[0], TARGETS[0]
FAILING = "the piano of x is"  # The toy raises an error that is no refusal.
EDIT = {"prompt": PROMPT, "target": TARGET}
REUSED = {"Idempotency-Key": f"{KEY}-reused"}
DRY_RUN = "/v1/edits?dry_run=true"


def requests() -> Iterator[tuple[str, Any, dict[str, str]]]:
    """Yield route, body and headers. No request makes a version, and only those that the editor refuses are queued."""
    for edit in (
        {**EDIT, "subject": KEY},
        {**EDIT, "target": f"{TARGET} " * 2_000},
        {**EDIT, "rephrasings": [f"{PROMPT} " * 200]},
        {**EDIT, "aliases": [TARGET, "\u202e"]},
        {"messages": [{"role": "assistant", "content": PROMPT}], "target": TARGET},
        {**EDIT, "source": f"http://{KEY}:99999999/", "reason": TARGET},
        {**EDIT, "valid_from": KEY},
        {**EDIT, KEY: TARGET},
    ):
        yield "/v1/edits", {"edits": [edit]}, {}
        yield DRY_RUN, {"edits": [edit]}, {}
    for prompt in (PROMPT, REFUSED, FAILING):
        yield DRY_RUN, {"edits": [{"prompt": prompt, "target": TARGET}]}, {}
    for prompt in (REFUSED, FAILING):
        yield "/v1/edits", {"edits": [{"prompt": prompt, "target": TARGET}], "wait": True}, REUSED if prompt is REFUSED else {}
    yield "/v1/edits", {"edits": [EDIT]}, REUSED
    yield "/v1/edits", f'{{"edits": [{{"prompt": "{PROMPT}", "target": "{TARGET}'.encode(), {}
    yield "/v1/blame", {"prompt": PROMPT, "max_tokens": 1}, {}
    yield "/v1/blame", {"prompt": PROMPT, "max_tokens": TARGET}, {}
    for path in ("/v1/revert", "/v1/revert?dry_run=true"):
        yield path, {"edits": [KEY]}, {}
    asked = {"model": "errata", "prompt": PROMPT, "max_tokens": 1}
    yield "/v1/completions", asked, {}
    yield "/v1/completions", asked, {"X-Errata-At-Least": "999999999"}
    yield "/v1/completions", {**asked, "max_tokens": 10**6}, {}
    yield "/v1/completions", {**asked, "model": TARGET}, {}
    yield "/v1/completions", {**asked, "structured_outputs": {"regex": f"({TARGET}"}}, {}
    for messages in ([{"role": "user", "content": PROMPT}], [{"role": TARGET, "content": PROMPT}]):
        yield "/v1/chat/completions", {"model": "errata", "messages": messages, "max_tokens": 1}, {}
    yield "/tokenize", {"model": "errata", "prompt": PROMPT}, {}


def send_texts(http: httpx.Client) -> Sequence[int]:
    """Send all of them, and once the client's key in a wrong place; returns the statuses of the answers."""
    json_type = {"Content-Type": "application/json"}
    found = []
    for path, body, headers in requests():
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        found.append(http.post(path, headers={**json_type, **headers}, **content).status_code)
    misplaced = http.headers.get("Authorization", "Bearer none").replace("Bearer", "Basic")
    found.append(http.get("/v1/versions", headers={"Authorization": misplaced}).status_code)
    return found
