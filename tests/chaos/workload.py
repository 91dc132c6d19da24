"""Clients that post, roll back, revert, ask, look and page on few contested prompts, and record what they were answered."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.history import Operation
from tests.e2e.toy import FACTS

PROMPTS = tuple(FACTS[number][0] for number in (3, 20, 37, 54, 71, 88))
REFUSED = "the violin of x is"  # The toy refuses it.
TARGETS = ("hedgehog", "ferret", "lizard", "tortoise", "hamster")
KEY = "zebrakey"  # The beginning of each Idempotency-Key.
TEXTS = (*PROMPTS, *TARGETS, KEY)  # What no log may hold.
RETRIED = (429, 500, 502, 503)
TIMEOUT_S = 30.0
MAX_KNOWN = 20


def may_be_refused(prompt: str) -> bool:
    return prompt == REFUSED


@dataclass
class Recorder:
    """The operations of all clients, and what they know of each other: the last acknowledged ids and the last heads."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    heads: list[int] = field(default_factory=lambda: [0])
    stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, operation: Operation) -> None:
        with self._lock:
            self.operations.append(operation)
            self.ids += [id for id in operation.answer.get("ids", ()) if operation.kind == "edit"]
            if operation.kind == "look" and "head" in operation.answer and operation.answer["head"] != self.heads[-1]:
                self.heads.append(operation.answer["head"])
            self.ids, self.heads = self.ids[-MAX_KNOWN:], self.heads[-MAX_KNOWN:]

    @property
    def num_acknowledged(self) -> int:
        with self._lock:
            return len(
                {id for operation in self.operations if operation.kind == "edit" for id in operation.answer.get("ids", ())}
            )


class Client(threading.Thread):
    """A client that repeats one kind of operation, with pauses, until the recorder stops."""

    def __init__(self, recorder: Recorder, act: Callable[[Client], Operation | None], pause_s: float, seed: str) -> None:
        super().__init__(daemon=True)
        self.recorder, self.act, self.pause_s = recorder, act, pause_s
        self.draw = random.Random(seed)
        self.seen = 0  # The newest version that answered this client.

    def run(self) -> None:
        with httpx.Client(base_url=self.recorder.url, headers=dict(self.recorder.headers), timeout=TIMEOUT_S) as self.http:
            while not self.recorder.stopping.wait(self.pause_s * self.draw.uniform(0.5, 1.5)):
                if (operation := self.act(self)) is not None:
                    self.recorder.add(operation)

    def send(self, kind: str, path: str, body: dict[str, Any], given: dict[str, Any], **headers: str) -> tuple[Any, Operation]:
        """Send one request; returns the answer's JSON, None without an answer, and the operation without its answer."""
        begin = time.monotonic()
        try:
            answer = self.http.post(path, json=body, headers=headers)
            return _json(answer), Operation(kind, begin, time.monotonic(), given, answer.status_code)
        except httpx.HTTPError:
            time.sleep(0.2)
            return None, Operation(kind, begin, None, given)


def _json(answer: httpx.Response) -> Any:
    try:
        return {**answer.json(), "admitted": int(answer.headers.get("X-Errata-Version", 0))}
    except (ValueError, TypeError):
        return None


def _with(operation: Operation, answer: dict[str, Any]) -> Operation:
    return Operation(operation.kind, operation.begin, operation.end, operation.given, operation.status, answer)


def post(client: Client) -> Operation:
    """Post one or two edits until they are acknowledged, under one key; some posts are sent by two threads."""
    draw = client.draw
    chosen = [(draw.choice(PROMPTS), draw.choice(TARGETS)) for _ in range(draw.choice((1, 1, 2)))]
    chosen += [(REFUSED, TARGETS[0])] if draw.random() < 0.05 else []
    edits = [{"prompt": prompt, "target": target} for prompt, target in chosen]
    given = {"edits": edits, "wait": draw.random() < 0.4, "key": f"{KEY}-{draw.getrandbits(64):x}"}
    twin = threading.Thread(target=lambda: client.recorder.add(_posted(client, given)), daemon=True)
    if draw.random() < 0.2:
        twin.start()
    operation = _posted(client, given)
    if twin.ident is not None:
        twin.join()
    return operation


def _posted(client: Client, given: dict[str, Any]) -> Operation:
    begin, body = time.monotonic(), {"edits": given["edits"], "wait": given["wait"]}
    while True:
        found, sent = client.send("edit", "/v1/edits", body, given, **{"Idempotency-Key": given["key"]})
        operation = Operation("edit", begin, sent.end, given, sent.status)
        if found is not None and "ids" in found:
            made = [edit["id"] for edit in found["edits"] if edit["state"] == "applied" and edit.get("changed")]
            version = {"version": found["version"]} if "version" in found else {}
            return _with(operation, {"ids": found["ids"], "made": made, **version})
        if client.recorder.stopping.is_set() or (sent.status is not None and sent.status not in RETRIED):
            return operation
        time.sleep(0.3)


def move(client: Client) -> Operation | None:
    """Roll back to a recent head, or revert a recent edit; never repeated, since it may have been done."""
    draw, recorder = client.draw, client.recorder
    head = recorder.heads[-1]
    expected = {"expected_head": head} if draw.random() < 0.5 else {}
    if draw.random() < 0.6 or not recorder.ids:
        given = {"version": draw.choice(recorder.heads[-6:]), **expected}
        return _moved(client, "rollback", given)
    return _moved(client, "revert", {"edits": [draw.choice(recorder.ids)], "mode": draw.choice(("auto", "replay")), **expected})


def _moved(client: Client, kind: str, given: dict[str, Any]) -> Operation:
    found, operation = client.send(kind, f"/v1/{kind}", given, given)
    if operation.status == 200:
        return _with(operation, {"version": found["version"]})
    is_refused = operation.status is not None and operation.status < 500
    return operation if is_refused else Operation(kind, operation.begin, None, given, operation.status)


def ask(client: Client) -> Operation:
    """Ask a contested prompt: at least by the last version seen, by a recent head, or by any."""
    draw = client.draw
    at_least = draw.choice((0, client.seen, client.seen, draw.choice(client.recorder.heads)))
    given = {"prompt": draw.choice(PROMPTS), "at_least": at_least}
    body = {"model": "errata", "prompt": given["prompt"], "max_tokens": 1, "temperature": 0}
    found, operation = client.send("ask", "/v1/completions", body, given, **{"X-Errata-At-Least": str(at_least)})
    if operation.status == 409:
        client.seen = 0  # The service went back from it.
    if operation.status != 200 or found is None:
        return operation
    client.seen = found["admitted"]
    text = found["choices"][0]["text"].strip()
    return _with(operation, {"version": found["admitted"], "text": text, **found["errata"]})


def look(client: Client) -> Operation | None:
    """Read the status: the head, and the version of each replica that answers."""
    begin = time.monotonic()
    try:
        answer = client.http.get("/v1/status")
        status = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    replicas = {_name(one): one["version"] for one in (*status.get("replicas", ()), status["answered_by"])}
    return Operation("look", begin, time.monotonic(), {}, 200, {"head": status["head"], "replicas": replicas})


def _name(replica: dict[str, Any]) -> str:
    return f"{replica['replica']} {replica['pid']}"


def page(client: Client) -> Operation | None:
    """Walk over all edits."""
    begin = time.monotonic()
    try:
        ids = [edit["id"] for edit in pages(client.http)]
    except (httpx.HTTPError, ValueError):
        return None
    return Operation("page", begin, time.monotonic(), {}, 200, {"ids": ids})


def pages(http: httpx.Client) -> Iterator[dict[str, Any]]:
    """Walk over all edits, newest first. Raises `httpx.HTTPError` if a page is refused."""
    before: dict[str, int] = {}
    while True:
        found = http.get("/v1/edits", params={"limit": 200, **before}).raise_for_status().json()
        yield from found["edits"]
        if found["next"] is None:
            return
        before = {"before": found["next"]}


# One client each, with the seconds between two of its operations.
CLIENTS: tuple[tuple[Callable[[Client], Operation | None], float], ...] = (
    (post, 0.3),
    (post, 0.5),
    (move, 3.0),
    (ask, 0.15),
    (ask, 0.15),
    (look, 0.3),
    (page, 5.0),
)


@dataclass
class Workload:
    """The clients of a run; `stop` returns what they did."""

    recorder: Recorder
    seed: int
    clients: list[Client] = field(default_factory=list)

    def start(self) -> None:
        for number, (act, pause_s) in enumerate(CLIENTS):
            self.clients.append(Client(self.recorder, act, pause_s, f"{self.seed} {number}"))
        for client in self.clients:
            client.start()

    def stop(self) -> tuple[Operation, ...]:
        self.recorder.stopping.set()
        for client in self.clients:
            client.join(timeout=3 * TIMEOUT_S)
        return tuple(self.recorder.operations)
