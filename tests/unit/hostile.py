"""Hostile or broken requests, with the statuses that may answer them: never a 5xx.

One list for the routes in a unit test and for the served application: `client.request(**item.options(keys))`, where `keys` has
tokens by the names in `Hostile.key` (empty for a service without keys: leave out items with `needs_keys`). One item has a
`before`, a valid request that queues an edit of "p" to "t".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JSON = {"Content-Type": "application/json"}
EDIT = {"edits": [{"prompt": "p", "target": "t"}]}
SOURCES = ("file:///etc/passwd", "javascript://x/%0aalert(1)", "http://[::1", "http://x:99999999/", "https://", "ftp://x/ y")
DAYS = ("0000-01-01", "2024-02-30", "\u0662\u0660\u0662\u0664-01-01", "2024-01-01T00:00", "9" * 5_000, "1; DROP", "-1")

# vLLM's routes for its developers and operators, which it installs by its environment and its options; none is served.
DEVELOPMENT = (
    "/abort_requests",
    "/collective_rpc",
    "/finish_weight_update",
    "/get_world_size",
    "/init_weight_transfer_engine",
    "/is_paused",
    "/is_sleeping",
    "/pause",
    "/release_kv_cache_memory",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/server_info",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/start_draft_weight_update",
    "/start_weight_update",
    "/update_weight_version",
    "/update_weights",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/wake_up",
    "/weight_checker",
    "/weight_info",
)


@dataclass(frozen=True)
class Hostile:
    """One request; `key` is the name of its key (a role, `expired`, `unknown`) or None. `before` is sent first."""

    name: str
    method: str
    path: str
    codes: frozenset[int]
    body: bytes = b""
    headers: Mapping[str, bytes | str] | None = None
    key: str | None = "admin"
    before: Hostile | None = None

    @property
    def needs_keys(self) -> bool:
        """The request is refused only because of its key."""
        return self.codes <= {401, 403}

    def options(self, keys: Mapping[str, str]) -> dict[str, Any]:
        headers = dict(self.headers or {})
        if self.key is not None and self.key in keys:
            headers["Authorization"] = f"Bearer {keys[self.key]}"
        return {"method": self.method, "url": self.path, "content": self.body, "headers": headers}


def get(name: str, path: str, *codes: int, **more: Any) -> Hostile:
    return Hostile(name, "GET", path, frozenset(codes), **more)


def post(name: str, path: str, body: Any, *codes: int, headers: Mapping[str, Any] = JSON, **more: Any) -> Hostile:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Hostile(name, "POST", path, frozenset(codes), content, headers, **more)


def edit_with(**fields: Any) -> dict[str, Any]:
    return {"edits": [{"prompt": "p", "target": "t", **fields}]}


def hostile(max_body_bytes: int = 4 * 2**20) -> list[Hostile]:
    return [*_sizes(max_body_bytes), *_bodies(), *_values(), *_proposals(), *_paths(), *_headers(), *_keys()]


def _sizes(max_body_bytes: int) -> list[Hostile]:
    big = b'{"edits": [{"prompt": "' + b"a" * max_body_bytes + b'", "target": "t"}]}'
    return [
        post("oversize edit", "/v1/edits", big, 413),
        post("oversize prompt", "/v1/completions", big, 413),
        post("oversize blanks", "/v1/edits", b" " * (max_body_bytes + 1), 413),
        get("long path", "/v1/edits/" + "a" * 20_000, 414, 431),
        get("long query", "/v1/edits?state=" + "a" * 20_000, 414, 431),
        get("long id", "/v1/edits/" + "a" * 3_000, 404, 422),
        get("long header", "/v1/versions", 431, headers={"X-Long": "a" * 20_000}),
        post("long idempotency key", "/v1/edits", EDIT, 431, headers={**JSON, "Idempotency-Key": "k" * 20_000}),
        post("too many edits", "/v1/edits", {"edits": EDIT["edits"] * 1_001}, 422),
        post("a long prompt", "/v1/edits", edit_with(prompt="a" * 16_385), 422),
        post("a long target", "/v1/edits", edit_with(target="a" * 16_385), 422),
        post("a long subject", "/v1/edits", edit_with(subject="p" * 16_385), 422),
        post("a long rephrasing", "/v1/edits", edit_with(rephrasings=["a" * 16_385]), 422),
        post("too many rephrasings", "/v1/edits", edit_with(rephrasings=["a"] * 65), 422),
        post("rephrasings that fill the body", "/v1/edits", edit_with(rephrasings=["a"] * 200_000), 422),
        post("too many rephrasings in all", "/v1/edits", {"edits": edit_with(rephrasings=["a"] * 64)["edits"] * 65}, 422),
        post("a long prompt to blame", "/v1/blame", {"prompt": "a" * 16_385}, 422),
        post("too many edits to revert", "/v1/revert", {"edits": ["a"] * 1_001}, 422),
        post("too many versions to revert", "/v1/revert", {"versions": [0] * 1_001}, 422),
        get("long bearer", "/v1/versions", 401, 431, headers={"Authorization": "Bearer " + "a" * 20_000}, key=None),
    ]


def _bodies() -> list[Hostile]:
    texts = {
        "empty": b"",
        "half": b'{"edits": [',
        "deep lists": b"[" * 100_000,
        "deep lists, closed": b"[" * 900 + b"]" * 900,
        "deep objects": b'{"a":' * 100_000,
        "deep objects, closed": b'{"a":' * 300 + b"1" + b"}" * 300,
        "NaN": b'{"version": NaN, "edits": [], "prompt": "p"}',
        "minus infinity": b'{"version": -Infinity}',
        "overflowing float": b'{"version": 1e999}',
        "overlong integer": b'{"version": ' + b"9" * 10_000 + b"}",
        "a name twice": b'{"version": 0, "version": 1, "edits": [], "edits": []}',
        "UTF-16": json.dumps(EDIT).encode("utf-16"),
        "UTF-32": json.dumps(EDIT).encode("utf-32"),
        "byte order mark": b"\xef\xbb\xbf" + json.dumps(EDIT).encode(),
        "latin-1": '{"edits": [{"prompt": "ü", "target": "t"}]}'.encode("latin-1"),
        "raw surrogate": b'{"edits": [{"prompt": "\xed\xa0\x80", "target": "t"}]}',
        "raw null byte": b'{"edits": [{"prompt": "\x00", "target": "t"}]}',
        "a list": b"[]",
        "a text": b'"edits"',
        "null": b"null",
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    }
    routes = (
        "/v1/edits",
        "/v1/edits?dry_run=true",
        "/v1/proposals",
        "/v1/rollback",
        "/v1/revert",
        "/v1/revert?dry_run=true",
        "/v1/blame",
        "/v1/completions",
        "/v1/chat/completions",
    )
    return [post(f"{name} to {route}", route, body, 400, 422) for name, body in texts.items() for route in routes]


def _values() -> list[Hostile]:
    texts = {"surrogate": "\ud800", "reversed pair": "\udc00\ud800", "surrogate in a text": "Anna \udfff lives"}
    items = []
    for name, text in texts.items():
        items += [
            post(f"{name} as {f}", "/v1/edits", edit_with(**{f: text}), 400, 422)
            for f in ("prompt", "target", "subject", "answer", "form", "source", "reason", "valid_from")
        ]
        items += [
            post(f"{name} as a rephrasing", "/v1/edits", edit_with(rephrasings=[text]), 400, 422),
            post(f"{name} as an alias", "/v1/edits", edit_with(aliases=[text]), 400, 422),
            post(f"{name} as a question", "/v1/edits", {"edits": [{"question": text, "target": "t"}]}, 400, 422),
            post(f"{name} as a message", "/v1/edits", {"edits": [{"messages": _said(text), "target": "t"}]}, 400, 422),
            post(f"{name} to try", "/v1/edits?dry_run=true", edit_with(target=text), 400, 422),
            post(f"{name} as an unknown field", "/v1/edits", edit_with(**{text: "x"}), 400, 422),
            post(f"{name} to complete", "/v1/completions", {"model": "errata", "prompt": text}, 400),
            post(f"{name} as a model", "/v1/completions", {"model": text, "prompt": "p"}, 400),
            post(f"{name} to blame", "/v1/blame", {"prompt": text}, 400, 422),
            post(f"{name} as an id", "/v1/revert", {"edits": [text]}, 400, 422),
        ]
    numbers = {
        "huge": 10**30,
        "64 bits": 2**63 - 1,
        "beyond 64 bits": 2**63,
        "negative": -1,
        "fraction": 0.5,
        "text": "1; DROP",
    }
    for name, number in numbers.items():
        items += [
            post(f"{name} version", "/v1/rollback", {"version": number}, 400, 404, 422),
            post(f"{name} version to revert", "/v1/revert", {"versions": [number]}, 400, 404, 422),
            post(f"{name} version to try to revert", "/v1/revert?dry_run=true", {"versions": [number]}, 400, 404, 409, 422),
            post(f"{name} head to go back from", "/v1/rollback", {"version": 0, "expected_head": number}, 400, 409, 422),
            post(f"{name} head to revert from", "/v1/revert", {"versions": [0], "expected_head": number}, 400, 409, 422),
            post(f"{name} number of tokens", "/v1/blame", {"prompt": "p", "max_tokens": number}, 400, 422),
        ]
    items += [
        post("no edits", "/v1/edits", {"edits": []}, 422),
        post("no edits to try", "/v1/edits?dry_run=true", {"edits": []}, 422),
        post("an unknown field to try", "/v1/edits?dry_run=true", edit_with(dry_run=True), 422),
        post("a subject to try that is not there", "/v1/edits?dry_run=true", edit_with(subject="other"), 422),
        post("a subject that is not there", "/v1/edits", edit_with(subject="\x1b[2J\r\nSet-Cookie: a=b"), 422),
        post("an unknown field", "/v1/edits", edit_with(__class__="x"), 422),
        post("another editor", "/v1/edits", {**EDIT, "editor": "os:system"}, 422),
        post("another artifact", "/v1/edits", {**EDIT, "artifact": "../../etc"}, 422),
        post("another ledger", "/v1/rollback", {"version": 0, "ledger": "/etc"}, 422),
        post("a chosen id", "/v1/edits", edit_with(id="../../etc"), 422),
        post("a class for a prompt", "/v1/edits", edit_with(prompt={"__reduce__": ["os.system", "true"]}), 422),
        *(post(f"{url} as a source", "/v1/edits", edit_with(source=url), 422) for url in SOURCES),
        *(post(f"{day} as a day", "/v1/edits", edit_with(valid_from=day), 422) for day in DAYS),
        post("a day to try that is none", "/v1/edits?dry_run=true", edit_with(valid_to="2024-13-01"), 422),
        post("a period without a day", "/v1/edits", edit_with(valid_from="2024-01-02", valid_to="2024-01-02"), 422),
        post("nothing to revert", "/v1/revert", {}, 409, 422),
        post("an unknown edit to revert", "/v1/revert", {"edits": ["../../etc"]}, 404, 422),
        post("nothing to try to revert", "/v1/revert?dry_run=true", {}, 409, 422),
        post("an unknown edit to try to revert", "/v1/revert?dry_run=true", {"edits": ["../../etc"]}, 404, 422),
        post("a mode with a path", "/v1/revert", {"versions": [1], "mode": "../../etc"}, 422),
    ]
    return items


def _proposals() -> list[Hostile]:
    items = [
        post("no proposals", "/v1/proposals", {"edits": []}, 422),
        post("a proposal to wait for", "/v1/proposals", {**EDIT, "wait": True}, 422),
        post("an author of one's choice", "/v1/proposals", edit_with(poster="admin"), 422),
        post("an approver of one's choice", "/v1/edits", edit_with(approver="admin"), 422),
        get("a state of proposals with a path", "/v1/proposals?state=..%2f..%2fetc", 422),
        get("two directions", "/v1/proposals?before=1&after=1", 422),
        get("a negative place", "/v1/proposals?after=-1", 422),
        get("a proposal that is not there", "/v1/proposals/'%20OR%20'1'='1", 404),
        get("a null byte as a proposal", "/v1/proposals/%00", 404, 422),
        get("no UTF-8 as a proposal", "/v1/proposals/%ff%fe", 404, 422),
    ]
    for decision in ("approve", "refuse"):
        path = f"/v1/proposals/'%20OR%20'1'='1/{decision}"
        items += [
            post(f"nothing to {decision}", path, {}, 404),
            post(f"a decider of one's choice to {decision}", path, {"decider": "admin"}, 422),
            post(f"a number as a reason to {decision}", path, {"reason": 1}, 422),
            post(f"a long reason to {decision}", path, {"reason": "a" * 16_385}, 422),
            post(f"a surrogate as a reason to {decision}", path, {"reason": "\ud800"}, 400, 422),
            get(f"a page that wants to {decision}", path, 405),
        ]
    return items


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _paths() -> list[Hostile]:
    ids = {
        "path up": "..%2f..%2fetc%2fpasswd",
        "double-encoded path up": "..%252f..%252fetc",
        "backslashes": "..%5c..%5cetc",
        "null byte": "%00",
        "null byte after a number": "1%00",
        "line break": "1%0d%0aSet-Cookie:%20a=b",
        "not UTF-8": "%ff%fe",
        "surrogate": "%ed%a0%80",
        "SQL": "'%20OR%20'1'='1",
        "huge number": "9" * 5_000,
        "long number": "9" * 300,
        "beyond 64 bits": "18446744073709551616",
        "negative": "-1",
        "fraction": "0.5",
        "Arabic digits": "%d9%a1%d9%a1%d9%a1%d9%a1%d9%a1",
        "spaces": "%20",
    }
    items = [get(f"{name} as an edit", f"/v1/edits/{id}", 404, 422) for name, id in ids.items()]
    items += [get(f"{name} as a version", f"/v1/versions/{id}", 404, 422) for name, id in ids.items()]
    items += [get(f"{name} as an edit's events", f"/v1/edits/{id}/events", 404, 422) for name, id in ids.items()]
    items += [get(f"{name} as a side", f"/v1/diff?from=0&to={id}", 404, 422) for name, id in ids.items()]
    items += [get(f"{name} as a cursor", f"/v1/edits?before={id}", 422) for name, id in ids.items() if "digits" not in name]
    items += [get(f"{name} as a limit", f"/v1/versions?limit={id}", 422) for name, id in ids.items() if "digits" not in name]
    items += [post(f"{name} as a dry run", f"/v1/edits?dry_run={id}", EDIT, 422) for name, id in ids.items()]
    items += [post(f"{name} as a dry run of a revert", f"/v1/revert?dry_run={id}", {}, 422) for name, id in ids.items()]
    items += [get(f"{name} as a file of the console", f"/console/{id}", 404) for name, id in ids.items()]
    items += [
        get("a state with a path", "/v1/edits?state=..%2f..%2fetc", 422),
        get("dots in the path", "/v1/versions/../../../etc/passwd", 404),
        get("encoded dots", "/%2e%2e/%2e%2e/etc/passwd", 404),
        get("two slashes", "//v1//edits", 404),
        Hostile("an unknown method", "PATCH", "/v1/edits", frozenset({405}), b"{}", JSON),
        Hostile("a version to delete", "DELETE", "/v1/versions/0", frozenset({405})),
        Hostile("a key to delete", "DELETE", "/v1/key", frozenset({405})),
        post("a key to make", "/v1/key", {"name": "x", "role": "admin"}, 405),
        post("a file for the console", "/console/app.js", {"body": "alert(1)"}, 405),
        get("a folder of the console", "/console/static/app.js", 404),
        get("a tag of bytes", "/console/app.js", 200, headers={"If-None-Match": b'"\xff' + b"x" * 9_000}),
        get("a range beyond the file", "/console/app.js", 200, headers={"Range": "bytes=99999999999-1"}),
        post("a route that generates unstamped", "/v1/responses", {"model": "errata", "input": "p"}, 404),
        post("SageMaker's route", "/invocations", {"prompt": "p"}, 404),
    ]
    for path in DEVELOPMENT:
        items += [
            post(f"vLLM's {path}", path, {"method": "exit"}, 404),
            get(f"vLLM's {path}, to read", path, 404),
        ]
    return items


def _headers() -> list[Hostile]:
    first = post("first", "/v1/edits", edit_with(subject="p"), 202, headers={**JSON, "Idempotency-Key": "hostile-replay"})
    other = {**JSON, "Idempotency-Key": "hostile-replay"}
    items = [
        post("replayed key with other edits", "/v1/edits", edit_with(target="other"), 409, headers=other, before=first),
        post("no type", "/v1/edits", EDIT, 415, headers={}),
        post("a form", "/v1/edits", EDIT, 415, headers={"Content-Type": "application/x-www-form-urlencoded"}),
        post(
            "plain text, as a web page may send unasked",
            "/v1/rollback",
            {"version": 0},
            415,
            headers={"Content-Type": "text/plain"},
        ),
        post("another charset", "/v1/edits", EDIT, 415, headers={"Content-Type": "application/json; charset=utf-16"}),
        post("compressed", "/v1/edits", b"\x1f\x8b", 415, headers={**JSON, "Content-Encoding": "gzip"}),
        post("an upload", "/v1/edits", b"--x--", 415, headers={"Content-Type": "multipart/form-data; boundary=x"}),
    ]
    for name, wanted in {"huge": "9" * 5_000, "negative": "-1", "path": "../../etc", "superscript": "²".encode()}.items():
        asks = {**JSON, "X-Errata-At-Least": wanted}
        items.append(
            post(f"{name} version to wait for", "/v1/completions", {"model": "errata", "prompt": "p"}, 400, headers=asks)
        )
    return items


def _keys() -> list[Hostile]:
    schemes = {
        "another scheme": "Basic YWRtaW46YWRtaW4=",
        "no scheme": "admin",
        "empty": "Bearer",
        "two": "Bearer a b",
        "bytes": b"Bearer \xff",
    }
    items = [get(f"{name}: a key", "/v1/versions", 401, headers={"Authorization": v}, key=None) for name, v in schemes.items()]
    items += [
        get("no key", "/v1/versions", 401, key=None),
        get("no key for metrics", "/metrics", 401, key=None),
        get("no key for what is not there", "/nowhere", 401, key=None),
        get("a key in the query", "/v1/versions?api_key=hunter2&key=hunter2", 401, key=None),
        get("no key, to ask its role", "/v1/key", 401, key=None),
        get("an expired key, to ask its role", "/v1/key", 401, key="expired"),
        post("no key, to try edits", "/v1/edits?dry_run=true", EDIT, 401, key=None),
        post("reading, to try edits", "/v1/edits?dry_run=true", EDIT, 403, key="read"),
        get("no key, beside the console", "/console/..%2fv1%2fstatus", 401, key=None),
        get("reading, beside the console", "/console/..%2fv1%2fstatus", 403, key="read"),
        get("an expired key", "/v1/versions", 401, key="expired"),
        get("an unknown key", "/v1/versions", 401, key="unknown"),
        post("no key and a large body", "/v1/edits", b" " * 2**20, 401, key=None),
        post("reading, to edit", "/v1/edits", EDIT, 403, key="read"),
        post("reading, to go back", "/v1/rollback", {"version": 0}, 403, key="read"),
        post("editing, to go back", "/v1/rollback", {"version": 0}, 403, key="edit"),
        post("editing, to revert", "/v1/revert", {"versions": [1]}, 403, key="edit"),
        post("editing, to try to revert", "/v1/revert?dry_run=true", {"versions": [1]}, 403, key="edit"),
        post("editing, on a route that is not listed", "/v1/responses", {}, 403, key="edit"),
        get("reading, with a line break after the route", "/v1/status%0a", 403, key="read"),
        get("reading, on vLLM's pages", "/docs", 403, key="read"),
    ]
    return items
