"""A client of the HTTP interface: what the command line, the demo and a user's own script call; docs/client.md."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from errata.client.errors import ErrataError, Unreachable
from errata.client.events import Event, events_of
from errata.client.responses import (
    BlameOut,
    DiffOut,
    EditOut,
    EditPage,
    EditsAnswer,
    Readiness,
    RevertOut,
    RollbackOut,
    VersionOut,
    VersionPage,
)
from errata.edit import SETTLED

DEFAULT_URL = "http://127.0.0.1:8000"
RETRY_S = 60.0
PAUSE_S = 1.0  # before another try where the service does not say when
SILENCE_S = 45.0  # three pings: a stream that is silent for longer is taken to be broken
PAGE = 1000  # the most that a page may hold
# Status codes after which a request is sent again; 0 is a broken connection. A 503 may come after the work was done, so only
# what does nothing, or does it once (edits under their key), may follow one: the second of two rollbacks would undo what
# somebody else did between them.
IF_TOLD = frozenset({429, 503})
ALWAYS = frozenset({0, 429, 503})
IF_NOTHING_WAS_DONE = frozenset({429})

log = logging.getLogger(__name__)


def _say_in_log(wait_s: float, why: str) -> None:
    log.info("asking again in %.0f s: %s", wait_s, why)


@dataclass(frozen=True)
class Client:
    """`Client("http://127.0.0.1:8000", key)`. Methods return the service's JSON; a refusal raises `ErrataError`.

    A refusal with Retry-After (429, 503) is waited for, up to `retry_s` seconds in all; `on_wait` is told each time. `key` is
    the bearer key, if the service wants one; it is in no message. Raises `ValueError` for an address or a key that cannot be
    sent. May be shared by threads; `close`, or use as a context manager.
    """

    url: str = DEFAULT_URL
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    retry_s: float = RETRY_S
    on_wait: Callable[[float, str], None] = field(default=_say_in_log, repr=False, compare=False)
    _http: httpx.Client = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_url(self.url)
        headers = {}
        if self.key:
            if not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
                raise ValueError("the key has characters that no key has: spaces, line ends or letters beyond ASCII")
            headers["Authorization"] = f"Bearer {self.key}"
        object.__setattr__(self, "_http", httpx.Client(base_url=self.url, timeout=self.timeout_s, headers=headers))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- edits --------------------------------------------------------------------------------------------------------

    def edit(self, edits: Sequence[Mapping[str, Any]], wait: bool = True, key: str | None = None) -> EditsAnswer:
        """Post edits; with `wait`, until they are served or refused. A refused one raises `ErrataError`; its `answer` has all.

        A service that is being restarted, or whose connection breaks, is asked again for up to `retry_s`, under one
        Idempotency-Key (`key`, or one made here), so that nothing is queued twice.
        """
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        body = {"edits": [dict(edit) for edit in edits], "wait": wait}
        return self._call("POST", "/v1/edits", body, headers=headers, again=ALWAYS)

    def edits(self, state: str | None = None, limit: int = 100, before: str | int | None = None) -> EditPage:
        """A page of at most `limit` edits, newest first; `before` takes the `next` of the page before it."""
        return self._call("GET", "/v1/edits", params={"state": state, "limit": limit, "before": before})

    def each_edit(self, state: str | None = None) -> Iterator[EditOut]:
        """All edits, newest first, a page at a time."""
        page = self.edits(state, PAGE)
        yield from page["edits"]
        while page["next"] is not None:
            page = self.edits(state, PAGE, page["next"])
            yield from page["edits"]

    def edit_status(self, edit_id: str) -> EditOut:
        return self._call("GET", f"/v1/edits/{_named(edit_id)}")

    def events(self, edit_id: str) -> Generator[Event, None, None]:
        """The state an edit is in and each it comes to, once, until it is settled; over several connections if one breaks."""
        last = None
        with closing(self._follow(f"/v1/edits/{_named(edit_id)}/events")) as events:
            for event in events:
                if event.name != "reconnected" and event.data != last:
                    last = event.data
                    yield event
                if event.name in SETTLED:
                    return

    def watch(self) -> Generator[Event, None, None]:
        """Everything that happens from now on: `edit`, `version`, `head`, and `reconnected` after a gap.

        What happened in the gap is not told. Goes on until it is closed; raises `Unreachable` when the service has not
        answered for `retry_s`.
        """
        return self._follow("/v1/events")

    # -- versions -----------------------------------------------------------------------------------------------------

    def versions(self, limit: int | None = None, before: int | None = None) -> VersionPage:
        """Oldest first; all of them, or the `limit` newest of those before version `before`."""
        return self._call("GET", "/v1/versions", params={"limit": limit, "before": before})

    def each_version(self) -> Iterator[VersionOut]:
        """All versions, newest first, a page at a time."""
        page = self.versions(PAGE)["versions"]
        while page:
            yield from reversed(page)
            page = self.versions(PAGE, page[0]["version"])["versions"] if page[0]["version"] > 0 else []

    def version(self, number: int) -> VersionOut:
        """One version with its edits."""
        return self._call("GET", f"/v1/versions/{number}")

    def diff(self, a: int, b: int) -> DiffOut:
        """What version `b` has that `a` has not, and the other way round."""
        return self._call("GET", "/v1/diff", params={"from": a, "to": b})

    def rollback(self, version: int) -> RollbackOut:
        """Serve an earlier (or later) version again."""
        return self._call("POST", "/v1/rollback", {"version": version}, again=IF_NOTHING_WAS_DONE)

    def revert(self, edits: Sequence[str] = (), versions: Sequence[int] = (), mode: str = "auto") -> RevertOut:
        """A new version without the named edits and without those of the named versions."""
        chosen = {name: list(values) for name, values in (("edits", edits), ("versions", versions)) if values}
        return self._call("POST", "/v1/revert", {**chosen, "mode": mode}, again=IF_NOTHING_WAS_DONE)

    def blame(self, prompt: str, max_tokens: int = 8) -> BlameOut:
        """Which version changed the answer to this prompt."""
        return self._call("POST", "/v1/blame", {"prompt": prompt, "max_tokens": max_tokens})

    # -- the service --------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status")

    def ready(self) -> Readiness:
        """Whether the live version is served and edits are taken; if not, why. Not being ready raises nothing."""
        try:
            return self._call("GET", "/ready", again=frozenset())
        except ErrataError as refused:
            if refused.status != 503:
                raise
            return {"ready": False, "reasons": list(refused.answer.get("reasons") or [refused.message])}

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
        return self._call("POST", "/v1/completions", body, headers=headers)

    # -- how it is asked ----------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        again: frozenset[int] = IF_TOLD,
    ) -> Any:
        """The JSON of the answer; asked again after the codes in `again`, see `_wait_s`.

        Nothing is raised inside an `except`: httpx's exception, whose request holds the key, would be its context.
        """
        given = {name: value for name, value in (params or {}).items() if value is not None}
        # Letters beyond ASCII are escaped: what UTF-8 cannot hold, a lone surrogate, reaches the service and is refused there.
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        sent = dict(headers or {}) | ({} if content is None else {"Content-Type": "application/json"})
        deadline = time.monotonic() + self.retry_s
        while True:
            try:
                response = self._http.request(method, path, content=content, params=given, headers=sent)
            except httpx.RequestError as failed:
                error: ErrataError = self._unreachable(failed)
            else:
                if response.is_success:
                    return self._json(response)
                error = ErrataError.of(response)
            wait_s = _wait_s(error, again)
            if wait_s is None or time.monotonic() + wait_s > deadline:
                raise error
            self.on_wait(wait_s, str(error))
            time.sleep(wait_s)

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json() if response.content else {}
        except ValueError:
            raise ErrataError(response.status_code, f"what answers at {self.url} is not Errata: it sends no JSON") from None

    def _unreachable(self, failed: httpx.RequestError) -> Unreachable:
        return Unreachable(0, f"the service at {self.url} does not answer ({str(failed) or type(failed).__name__})")

    def _follow(self, path: str) -> Generator[Event, None, None]:
        """Events over as many connections as it takes, `reconnected` at the beginning of each but the first."""
        num_connections, deadline = 0, time.monotonic() + self.retry_s
        while True:
            error: ErrataError | None = None
            try:
                for event in self._stream(path):
                    deadline = time.monotonic() + self.retry_s
                    if event is not None:
                        yield event
                        continue
                    num_connections += 1
                    if num_connections > 1:
                        yield Event("reconnected", {})
            except ErrataError as failed:
                error = failed
            wait_s = PAUSE_S if error is None else _wait_s(error, ALWAYS if num_connections else IF_TOLD)
            if error is not None and (wait_s is None or time.monotonic() + wait_s > deadline):
                raise error
            self.on_wait(wait_s or PAUSE_S, str(error or "the stream of events ended"))
            time.sleep(wait_s or PAUSE_S)

    def _stream(self, path: str) -> Iterator[Event | None]:
        """None once the service has answered, then the events of one connection. Raises `ErrataError`."""
        timeout = httpx.Timeout(self.timeout_s, read=SILENCE_S)
        error: ErrataError | None = None
        try:
            with self._http.stream("GET", path, headers={"Accept": "text/event-stream"}, timeout=timeout) as response:
                if response.is_success:
                    yield None
                    yield from events_of(response.iter_bytes())
                    return
                response.read()
                error = ErrataError.of(response)
        except httpx.RequestError as failed:
            error = self._unreachable(failed)
        except json.JSONDecodeError:
            error = ErrataError(200, f"what answers at {self.url} is not Errata: its events are not JSON")
        assert error is not None
        raise error


def _wait_s(error: ErrataError, again: frozenset[int]) -> float | None:
    """Seconds until it may be asked again: as the service says, or a pause if even a broken connection is asked again."""
    if error.status not in again:
        return None
    if error.retry_after_s is not None:
        return max(error.retry_after_s, 0.1)
    return PAUSE_S if 0 in again else None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = "" if "@" in url else f", not {url!r}"  # what stands before an @ may be a key
        raise ValueError(f"the service's address is http://HOST:PORT{shown}")
    if "@" in parts.netloc:
        raise ValueError("the service's address has a name or a key in it; the key belongs into ERRATA_KEY")


def _named(edit_id: str) -> str:
    """An id for a path. Raises `ValueError` for what would be another path."""
    if not edit_id or not edit_id.isalnum() or not edit_id.isascii():
        raise ValueError(f"{edit_id!r} is no id of an edit; `errata edits` lists them")
    return edit_id
