"""A client that posts continuously and records the acknowledged edits, and the account of what became of them."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from errata.history.lineage import live_edits
from errata.ledger import Ledger
from tests.e2e.toy import WORLD

FACTS = WORLD.sentences()
ANSWERS = ("dog", "cat", "goose", "parrot", "hamster")
PERIOD_S = 0.3


@dataclass
class Poster:
    """Posts one edit at a time and repeats it under one Idempotency-Key until acknowledged; every fifth is sent twice."""

    http: httpx.Client
    acknowledged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # Answers that neither acknowledge nor ask to retry.
    num_duplicates: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._post_continuously, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=60)

    def _post_continuously(self) -> None:
        number = 0
        while not self._stopping.wait(PERIOD_S):
            number += 1
            edit = {"prompt": FACTS[number % len(FACTS)][0], "target": ANSWERS[number % len(ANSWERS)]}
            self.post(edit, str(uuid.uuid4()), twice=number % 5 == 0)

    def post(self, edit: dict[str, Any], key: str, twice: bool = False) -> None:
        """Post an edit until it is acknowledged or this client is stopped."""
        if twice:
            self.num_duplicates += 1
            other = threading.Thread(target=self._until_acknowledged, args=(edit, key))
            other.start()
        self._until_acknowledged(edit, key)
        if twice:
            other.join()

    def _until_acknowledged(self, edit: dict[str, Any], key: str) -> None:
        while not self._stopping.is_set():
            try:
                answer = self.http.post("/v1/edits", json={"edits": [edit]}, headers={"Idempotency-Key": key}, timeout=10)
            except httpx.HTTPError:
                time.sleep(0.2)
                continue
            with self._lock:
                if answer.status_code in (200, 202):
                    return self.acknowledged.extend(answer.json()["ids"])
                if answer.status_code not in (429, 500, 502, 503):
                    return self.refused.append(f"{answer.status_code}: {answer.text[:200]}")
            time.sleep(float(answer.headers.get("Retry-After", 0.2)))


@dataclass(frozen=True)
class Account:
    """The fates of the acknowledged edits: `lost` ones are missing in the live version, `doubled` ones are in it twice."""

    acknowledged: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    unsettled: tuple[str, ...]


def account(poster: Poster, http: httpx.Client, ledger: Ledger, timeout_s: float = 60.0) -> Account:
    """Wait until all acknowledged edits are settled, then count them in the live version."""
    ids = sorted(set(poster.acknowledged))
    fates: dict[str, str] = {}
    deadline = time.monotonic() + timeout_s
    while len(fates) < len(ids) and time.monotonic() < deadline:
        for id in (id for id in ids if id not in fates):
            found = http.get(f"/v1/edits/{id}").json()
            if (state := found.get("state", "unknown")) not in ("queued", "applying"):
                fates[id] = "unchanged" if found.get("changed") is False else state
        time.sleep(0.1)
    held = Counter(edit.id for edit in live_edits(ledger, ledger.head))
    lost = [id for id in ids if fates.get(id) not in ("superseded", "unchanged") and id in fates and held[id] == 0]
    doubled = [id for id in ids if held[id] > 1]
    return Account(len(ids), tuple(lost), tuple(doubled), tuple(id for id in ids if id not in fates))
