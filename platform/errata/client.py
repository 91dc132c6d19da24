"""A small client of the HTTP interface: what the command line, the demo and a user's own script call."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

RETRY_S = 60.0


class ErrataError(RuntimeError):
    """The server refused: its status code, and what it said was wrong."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message

    def __str__(self) -> str:
        return f"{self.message} (HTTP {self.status})"


@dataclass
class Client:
    """`Client("http://127.0.0.1:8000")`. Methods return the server's JSON; a refusal raises `ErrataError`."""

    url: str = "http://127.0.0.1:8000"
    timeout_s: float = 120.0
    _http: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._http = httpx.Client(base_url=self.url, timeout=self.timeout_s)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        response = self._http.request(method, path, **options)
        if response.is_error:
            raise ErrataError(response.status_code, _message(response))
        return response.json() if response.content else {}

    def edit(self, edits: Sequence[dict[str, Any]], wait: bool = True, key: str | None = None) -> dict[str, Any]:
        """Post edits; with `wait`, until they are served or refused.

        A server that is just being restarted is asked again for up to a minute, under one Idempotency-Key, so that nothing is
        queued twice.
        """
        body, headers = {"edits": list(edits), "wait": wait}, {"Idempotency-Key": key or uuid.uuid4().hex}
        deadline = time.monotonic() + RETRY_S
        while True:
            try:
                return self._call("POST", "/v1/edits", json=body, headers=headers)
            except ErrataError as refused:
                if refused.status != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(1.0)

    def edit_status(self, edit_id: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/edits/{edit_id}")

    def versions(self) -> dict[str, Any]:
        return self._call("GET", "/v1/versions")

    def version(self, number: int) -> dict[str, Any]:
        return self._call("GET", f"/v1/versions/{number}")

    def rollback(self, version: int) -> dict[str, Any]:
        return self._call("POST", "/v1/rollback", json={"version": version})

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status")

    def models(self) -> list[str]:
        return [model["id"] for model in self._call("GET", "/v1/models")["data"]]

    def complete(self, prompts: Sequence[str], max_tokens: int = 8, at_least: int | None = None) -> dict[str, Any]:
        """Greedy completions of all the prompts in one request; `choices` are in their order, `errata` has the versions."""
        headers = {} if at_least is None else {"X-Errata-At-Least": str(at_least)}
        body = {
            "model": self.models()[0],
            "prompt": list(prompts),
            "max_tokens": max_tokens,
            "temperature": 0,
            "return_token_ids": True,
        }
        return self._call("POST", "/v1/completions", json=body, headers=headers)


def _message(response: httpx.Response) -> str:
    try:
        error = response.json().get("error") or response.json().get("detail")
    except ValueError:
        return response.text[:500]
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
