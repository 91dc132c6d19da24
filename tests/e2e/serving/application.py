"""The client side of the running application for its tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from errata.ledger import Ledger
from tests.e2e.toy import FACTS


@dataclass
class App:
    """The running application and its client."""

    http: httpx.Client
    ledger: Ledger

    def edit(self, *edits: dict[str, Any], wait: bool = True, **headers: str) -> httpx.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post("/v1/edits", json={"edits": list(edits), "wait": wait}, headers=headers)

    def complete(self, prompt: Any, max_tokens: int = 1, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        body = {"model": "errata", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}
        return self.http.post("/v1/completions", json=body, headers=headers)

    def status(self) -> dict[str, Any]:
        return self.http.get("/v1/status").json()

    def answer(self, prompt: str) -> str:
        return self.complete(prompt).json()["choices"][0]["text"].strip()


def eventually(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait until a condition is true; a service that cannot be reached counts as false."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except (httpx.HTTPError, KeyError, ValueError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"the condition did not hold within {timeout_s} s")


def is_whole(app: App) -> bool:
    """Return True if both deployments answer and the ledger's head is served."""
    status = app.status()
    return [r["version"] for r in status["replicas"]] == [app.ledger.head] and "pid" in status["worker"]


def fact(number: int, target: str = "dog") -> dict[str, Any]:
    return {"prompt": FACTS[number][0], "target": target}
