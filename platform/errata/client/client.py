"""The client of the HTTP interface, for scripts and the command line; docs/client.md."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from httpx_sse import SSEError

from errata.client import retries
from errata.client.address import check_url, checked_id
from errata.client.errors import ErrataError, Unreachable
from errata.client.events import Event, events_of
from errata.client.responses import (
    AskedOut,
    BlameOut,
    DiffOut,
    DryRunOut,
    EditOut,
    EditPage,
    EditsAnswer,
    ProposalOut,
    ProposalPage,
    ReadyOut,
    RevertDryRunOut,
    RevertOut,
    RollbackOut,
    VersionOut,
    VersionPage,
)
from errata.client.retries import ALWAYS, IF_ASKED, IF_NOTHING_WAS_DONE, wait_s_of
from errata.client.version_span import VersionSpan, oldest_and_newest
from errata.edit import SETTLED
from errata.text.dialogue import Dialogue, Prompt

DEFAULT_URL = "http://127.0.0.1:8000"
RETRY_S = 60.0
SILENCE_S = 45.0  # three pings: a stream that is silent for longer counts as broken
CHATS_AT_ONCE = 32
PAGE = 1000  # the service's limit

log = logging.getLogger(__name__)


def _log_wait(wait_s: float, why: str) -> None:
    log.info("trying again in %.0f s: %s", wait_s, why)


@dataclass(frozen=True)
class Client:
    """A client of one service: `Client("http://127.0.0.1:8000", key)`. Methods return JSON; a refusal raises `ErrataError`.

    After a refusal with Retry-After (429, 503) the request is repeated, for up to `retry_s` seconds in all; `on_wait` is called
    each time. `key` is the bearer key, if the service requires one; no message contains it. Raises `ValueError` for an address
    or key that cannot be sent. Threads may share a client; `close` it, or use it as a context manager.
    """

    url: str = DEFAULT_URL
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    retry_s: float = RETRY_S
    on_wait: Callable[[float, str], None] = field(default=_log_wait, repr=False, compare=False)
    _http: httpx.Client = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_url(self.url)
        headers = {}
        if self.key:
            if not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
                raise ValueError("the key contains spaces, line ends or letters beyond ASCII, which no key does")
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
        """Post edits; with `wait`, return when they are served. A refused one raises `ErrataError`; its `answer` has all.

        While the service restarts or the connection breaks, the request is repeated for up to `retry_s` under one
        Idempotency-Key (`key`, or a new one), so that no edit is queued twice.
        """
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        body = {"edits": [dict(edit) for edit in edits], "wait": wait}
        return self._call("POST", "/v1/edits", body, headers=headers, again=ALWAYS)

    def dry_run(self, edits: Sequence[Mapping[str, Any]]) -> DryRunOut:
        """Find what a post of these edits would do: their answers before and after, the guard's figures, changed neighbours."""
        return self._call("POST", "/v1/edits", {"edits": [dict(edit) for edit in edits]}, params={"dry_run": "true"})

    def edits(
        self, state: str | None = None, limit: int = 100, before: str | int | None = None, subject: str | None = None
    ) -> EditPage:
        """Get a page of at most `limit` edits, newest first; `before` is the `next` of the previous page.

        With `subject`, get the corrections of one subject.
        """
        return self._call("GET", "/v1/edits", params={"state": state, "limit": limit, "before": before, "subject": subject})

    def each_edit(self, state: str | None = None, subject: str | None = None) -> Iterator[EditOut]:
        """Yield all edits, newest first; pages are requested as needed."""
        page = self.edits(state, PAGE, subject=subject)
        yield from page["edits"]
        while page["next"] is not None:
            page = self.edits(state, PAGE, page["next"], subject)
            yield from page["edits"]

    def edit_status(self, edit_id: str) -> EditOut:
        return self._call("GET", f"/v1/edits/{checked_id(edit_id)}")

    def events(self, edit_id: str) -> Generator[Event, None, None]:
        """Yield the edit's state and each later one, once each, until it is settled; a broken connection is replaced."""
        last = None
        with closing(self._follow(f"/v1/edits/{checked_id(edit_id)}/events")) as events:
            for event in events:
                if event.name != "reconnected" and event.data != last:
                    last = event.data
                    yield event
                if event.name in SETTLED:
                    return

    def watch(self) -> Generator[Event, None, None]:
        """Yield all events (`edit`, `version`, `head`), and `reconnected` after a gap, whose events are lost.

        `listening`, with the live version, says that no later event is missed: what is read after it is complete.
        The generator runs until it is closed. Raises `Unreachable` when the service has not answered for `retry_s`.
        """
        return self._follow("/v1/events")

    # -- proposals ----------------------------------------------------------------------------------------------------

    def propose(self, edits: Sequence[Mapping[str, Any]], key: str | None = None) -> list[ProposalOut]:
        """Propose edits for a reviewer to decide on; repeated as in `edit`, so that none is proposed twice."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        body = {"edits": [dict(edit) for edit in edits]}
        found: list[ProposalOut] = self._call("POST", "/v1/proposals", body, headers=headers, again=ALWAYS)["proposals"]
        return found

    def proposals(
        self, state: str | None = None, limit: int = 100, before: int | None = None, after: int | None = None
    ) -> ProposalPage:
        """Get a page of at most `limit` proposals, newest first, or with `after` (0 at first) oldest first.

        `before` or `after` is the `next` of the previous page.
        """
        return self._call("GET", "/v1/proposals", params={"state": state, "limit": limit, "before": before, "after": after})

    def proposal(self, proposal_id: str) -> ProposalOut:
        return self._call("GET", f"/v1/proposals/{checked_id(proposal_id)}")

    def approve(self, proposal_id: str, reason: str | None = None) -> ProposalOut:
        """Approve an open proposal: it is queued as the edit of the same id. Its author may not."""
        return self._decide(proposal_id, "approve", reason)

    def refuse(self, proposal_id: str, reason: str | None = None) -> ProposalOut:
        """Refuse an open proposal."""
        return self._decide(proposal_id, "refuse", reason)

    def _decide(self, proposal_id: str, decision: str, reason: str | None) -> ProposalOut:
        path, body = f"/v1/proposals/{checked_id(proposal_id)}/{decision}", {} if reason is None else {"reason": reason}
        return self._call("POST", path, body, again=IF_NOTHING_WAS_DONE)

    # -- versions -----------------------------------------------------------------------------------------------------

    def versions(self, limit: int = 100, before: int | None = None) -> VersionPage:
        """List at most `limit` versions, oldest first: the newest, or those before version `before`."""
        return self._call("GET", "/v1/versions", params={"limit": limit, "before": before})

    def each_version(self, before: int | None = None) -> Iterator[VersionOut]:
        """Yield all versions, or those before version `before`, newest first; pages are requested as needed."""
        page = self.versions(PAGE, before)["versions"]
        while page:
            yield from reversed(page)
            page = self.versions(PAGE, page[0]["version"])["versions"] if page[0]["version"] > 0 else []

    def version(self, number: int) -> VersionOut:
        """Get one version with its edits."""
        return self._call("GET", f"/v1/versions/{number}")

    def diff(self, a: int, b: int) -> DiffOut:
        """Compare two versions: edits that only one of them holds, norms of the change, both scorecards."""
        return self._call("GET", "/v1/diff", params={"from": a, "to": b})

    def rollback(self, version: int, expected_head: int | None = None) -> RollbackOut:
        """Serve an earlier or later version again. If `expected_head` is given and not live, it raises and changes nothing."""
        body = {"version": version} | ({} if expected_head is None else {"expected_head": expected_head})
        return self._call("POST", "/v1/rollback", body, again=IF_NOTHING_WAS_DONE)

    def revert(
        self,
        edits: Sequence[str] = (),
        versions: Sequence[int] = (),
        mode: str = "auto",
        expected_head: int | None = None,
    ) -> RevertOut:
        """Make a new version without these edits and without those of these versions; `expected_head` as in `rollback`."""
        return self._call("POST", "/v1/revert", _chosen(edits, versions, mode, expected_head), again=IF_NOTHING_WAS_DONE)

    def dry_run_revert(
        self, edits: Sequence[str] = (), versions: Sequence[int] = (), mode: str = "auto", expected_head: int | None = None
    ) -> RevertDryRunOut:
        """Find what a revert would do: answers before and after, the scorecard of the version, changed neighbours."""
        body = _chosen(edits, versions, mode, expected_head)
        return self._call("POST", "/v1/revert", body, params={"dry_run": "true"})

    def blame(self, prompt: Prompt, max_tokens: int = 8) -> BlameOut:
        """Find the version that changed the answer to this prompt or dialogue."""
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt.to_json()}
        return self._call("POST", "/v1/blame", {**asked, "max_tokens": max_tokens})

    # -- the service --------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status")

    def ready(self) -> ReadyOut:
        """Get readiness, with the reasons if the service is not ready, which raises nothing."""
        try:
            return self._call("GET", "/ready", again=frozenset())
        except ErrataError as refused:
            if refused.status != 503:
                raise
            return {"ready": False, "reasons": list(refused.answer.get("reasons") or [refused.message])}

    def models(self) -> list[str]:
        return [model["id"] for model in self._call("GET", "/v1/models")["data"]]

    def form(self) -> Literal["completion", "chat"]:
        """Return the form in which the served model is asked and corrected by default."""
        return self.status().get("worker", {}).get("form", "completion")

    def ask(self, prompts: Sequence[Prompt], max_tokens: int = 8, at_least: int | None = None) -> AskedOut:
        """Ask greedily, dialogues in chat and texts as completions; `answers` keep the order of the prompts.

        `version_min` and `version_max` are the oldest and the newest version that answered.
        """
        found, stamps = self._choices(prompts, max_tokens, at_least)
        texts = {
            prompt: choice["text"] if isinstance(prompt, str) else choice["message"]["content"] or ""
            for prompt, choice in found.items()
        }
        return {"answers": [texts[prompt] for prompt in prompts], **oldest_and_newest(stamps)}

    def token_ids(self, prompts: Sequence[Prompt], max_tokens: int = 8, at_least: int | None = None) -> list[list[int]]:
        """Return the tokens of greedy answers, in the order of the prompts; an end token may be the last one."""
        found, _ = self._choices(prompts, max_tokens, at_least)
        return [found[prompt]["token_ids"] for prompt in prompts]

    def _choices(
        self, prompts: Sequence[Prompt], max_tokens: int, at_least: int | None
    ) -> tuple[dict[Prompt, dict[str, Any]], list[VersionSpan]]:
        """Complete the texts and answer the dialogues; returns the choices by prompt, and the versions."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        dialogues = [prompt for prompt in prompts if not isinstance(prompt, str)]
        found: dict[Prompt, dict[str, Any]] = {}
        stamps: list[VersionSpan] = []
        if texts:
            completed = self.complete(texts, max_tokens, at_least)
            found |= dict(zip(texts, completed["choices"], strict=True))
            stamps.append(completed["errata"])
        if dialogues:
            answered = self.chat(dialogues, max_tokens, at_least)
            found |= dict(zip(dialogues, answered["choices"], strict=True))
            stamps.append(answered["errata"])
        return found, stamps

    def chat(self, dialogues: Sequence[Dialogue], max_tokens: int = 8, at_least: int | None = None) -> dict[str, Any]:
        """Answer all dialogues greedily, a request for each; `choices` keep their order, `errata` has the versions."""
        headers = {} if at_least is None else {"X-Errata-At-Least": str(at_least)}
        asked = {"model": self.models()[0], "max_tokens": max_tokens, "temperature": 0, "return_token_ids": True}

        def answered(dialogue: Dialogue) -> dict[str, Any]:
            return self._call("POST", "/v1/chat/completions", {**asked, "messages": dialogue.to_json()}, headers=headers)

        with ThreadPoolExecutor(CHATS_AT_ONCE) as pool:
            found = list(pool.map(answered, dialogues))
        versions = oldest_and_newest([answer["errata"] for answer in found])
        return {"choices": [answer["choices"][0] for answer in found], "errata": versions}

    def complete(self, prompts: Sequence[str], max_tokens: int = 8, at_least: int | None = None) -> dict[str, Any]:
        """Complete all prompts greedily, in one request; `choices` keep their order, `errata` has the versions."""
        headers = {} if at_least is None else {"X-Errata-At-Least": str(at_least)}
        body = {
            "model": self.models()[0],
            "prompt": list(prompts),
            "max_tokens": max_tokens,
            "temperature": 0,
            "return_token_ids": True,
        }
        return self._call("POST", "/v1/completions", body, headers=headers)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        again: frozenset[int] = IF_ASKED,
    ) -> Any:
        """Send a request and return the JSON of the answer; it is repeated after the codes in `again`, see `_wait_s`.

        Nothing is raised inside an `except`: httpx's exception, whose request contains the key, would become the context.
        """
        given = {name: value for name, value in (params or {}).items() if value is not None}
        # With escapes, a lone surrogate, which UTF-8 cannot encode, reaches the service and is refused there.
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
            wait_s = wait_s_of(error, again)
            if wait_s is None or time.monotonic() + wait_s > deadline:
                raise error
            self.on_wait(wait_s, str(error))
            time.sleep(wait_s)

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json() if response.content else {}
        except ValueError:
            raise ErrataError(response.status_code, f"the server at {self.url} is not Errata: it sends no JSON") from None

    def _unreachable(self, failed: httpx.RequestError) -> Unreachable:
        return Unreachable(0, f"the service at {self.url} does not answer ({str(failed) or type(failed).__name__})")

    def _follow(self, path: str) -> Generator[Event, None, None]:
        """Yield events over as many connections as needed, with `reconnected` at the start of each but the first."""
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
            wait_s = retries.PAUSE_S if error is None else wait_s_of(error, ALWAYS if num_connections else IF_ASKED)
            if error is not None and (wait_s is None or time.monotonic() + wait_s > deadline):
                raise error
            self.on_wait(wait_s or retries.PAUSE_S, str(error or "the stream of events ended"))
            time.sleep(wait_s or retries.PAUSE_S)

    def _stream(self, path: str) -> Iterator[Event | None]:
        """Yield None once the service has answered, then the events of one connection. Raises `ErrataError`."""
        timeout = httpx.Timeout(self.timeout_s, read=SILENCE_S)
        error: ErrataError
        try:
            with self._http.stream("GET", path, headers={"Accept": "text/event-stream"}, timeout=timeout) as response:
                if response.is_success:
                    yield None
                    yield from events_of(response)
                    return
                response.read()
                error = ErrataError.of(response)
        except SSEError:
            error = ErrataError(200, f"the server at {self.url} is not Errata: it sends no event stream")
        except httpx.RequestError as failed:
            error = self._unreachable(failed)
        except json.JSONDecodeError:
            error = ErrataError(200, f"the server at {self.url} is not Errata: its events are not JSON")
        raise error


def _chosen(edits: Sequence[str], versions: Sequence[int], mode: str, expected_head: int | None) -> dict[str, Any]:
    """Return the body of a revert."""
    body: dict[str, Any] = {name: list(values) for name, values in (("edits", edits), ("versions", versions)) if values}
    return body | {"mode": mode} | ({} if expected_head is None else {"expected_head": expected_head})
