"""The HTTP routes beside OpenAI's: edits, events, versions, rollback, revert, blame, status, metrics."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from sse_starlette import EventSourceResponse

from errata.client.responses import ProposalState
from errata.edit import SETTLED, Code, EditRejected, EditState
from errata.ledger import Version
from errata.local.service_limits import ServiceLimits
from errata.text.dialogue import Dialogue, Prompt, messages_from_json
from serving.api.errors import RETRY_AFTER_S, answer_for, error_body, unwrapped
from serving.api.schemas import (
    MAX_IN_ADDRESS,
    AskedIn,
    BlameIn,
    Cursor,
    DecisionIn,
    DryRunOut,
    EditOut,
    EditsIn,
    EditsOut,
    EditsPage,
    KeyOut,
    Name,
    Number,
    ProposalOut,
    ProposalsIn,
    ProposalsOut,
    ProposalsPage,
    RefusalOut,
    RevertIn,
    RollbackIn,
)
from serving.worker.proposals import ProposalQuery
from serving.worker.queue_limit import QueueFull
from serving.worker.refusals import REFUSALS

OURS = ("/v1/edits", "/v1/proposals", "/v1/events", "/v1/versions", "/v1/diff", "/v1/rollback", "/v1/revert", "/v1/blame")
ANSWERED = (*REFUSALS, RayActorError, DeploymentUnavailableError, BackPressureError)
PING_S = 15
REFUSED = (400, 401, 403, 404, 409, 413, 414, 415, 422, 429, 503)


class Backend(Protocol):
    """The replica's interface to the routes; some answers come from the edit worker. `by` is the name of the caller's key."""

    async def submit(
        self, edits: list[dict[str, Any]], wait: bool, key: str | None, by: str | None
    ) -> list[dict[str, Any]]: ...

    async def dry_run(self, edits: list[dict[str, Any]]) -> dict[str, Any]: ...

    async def edits(self, state: str | None, limit: int, before: int | None, subject: str | None) -> dict[str, Any]: ...

    async def edit_status(self, id: str) -> dict[str, Any]: ...

    def edit_events(self, id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]: ...

    def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]: ...

    async def propose(self, edits: list[dict[str, Any]], key: str | None, by: str | None) -> list[dict[str, Any]]: ...

    async def proposals(self, asked: ProposalQuery) -> dict[str, Any]: ...

    async def proposal(self, id: str) -> dict[str, Any]: ...

    async def decide(self, id: str, approve: bool, by: str | None, reason: str | None) -> dict[str, Any]: ...

    async def rollback(self, version: int, by: str | None, expected_head: int | None) -> dict[str, Any]: ...

    async def revert(
        self, edits: list[str], versions: list[int], mode: str, by: str | None, expected_head: int | None
    ) -> dict[str, Any]: ...

    async def dry_run_revert(
        self, edits: list[str], versions: list[int], mode: str, expected_head: int | None
    ) -> dict[str, Any]: ...

    async def blame(self, prompt: Prompt, max_tokens: int) -> dict[str, Any]: ...

    async def diff(self, low: int, high: int) -> dict[str, Any]: ...

    async def unready(self) -> list[str]: ...

    async def all_metrics(self) -> str: ...

    async def service_status(self) -> dict[str, Any]: ...

    def versions(self, limit: int, before: int | None) -> dict[str, Any]: ...

    def version_with_edits(self, number: int) -> Version: ...


def version_json(version: Version, with_edits: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "version": version.number,
        "parent": version.parent,
        "editor": version.editor,
        "plan": version.plan,
        "fingerprint": version.fingerprint,
        "created": version.created,
        "num_edits": len(version.edits),
        "num_bytes": version.num_bytes,
        "norms": dict(version.norms),
        "ranks": dict(version.ranks),
        "scorecard": version.scorecard,
    }
    return data | {"edits": [edit.to_json() for edit in version.edits]} if with_edits else data


def versions_page(head: int, newest: int, found: Iterable[Version], limit: int, max_bytes: int) -> dict[str, Any]:
    """Make a page of versions, of which `found` are read newest first: at most `limit` and `max_bytes`, but always one."""
    shown: list[dict[str, Any]] = []
    size = 0
    for version in islice(found, limit):
        data = version_json(version, with_edits=False)
        size += len(json.dumps(data))
        if shown and size > max_bytes:
            break
        shown.append(data)
    return {"head": head, "newest": newest, "versions": shown[::-1]}


def router(backend: Backend, limits: ServiceLimits | None = None) -> APIRouter:
    responses: dict[int | str, dict[str, Any]] = {status: {"model": RefusalOut} for status in REFUSED}
    routes = APIRouter(tags=["errata"], responses=responses)
    _add_edit_routes(routes, backend)
    _add_proposal_routes(routes, backend)
    _add_event_routes(routes, backend, (limits or ServiceLimits()).send_timeout_s)
    _add_version_routes(routes, backend)

    @routes.get("/v1/status")
    async def get_status() -> dict[str, Any]:
        return await unwrapped(backend.service_status())

    @routes.get("/v1/key")
    async def get_key(request: Request) -> KeyOut:
        """Name the caller's key and its role."""
        return KeyOut.of(request.scope.get("errata.key"))

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def get_metrics() -> PlainTextResponse:
        """Metrics in Prometheus's text form: those of the edit worker and of each replica, which includes vLLM's."""
        return PlainTextResponse(await unwrapped(backend.all_metrics()), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @routes.get("/ready")
    async def get_ready() -> JSONResponse:
        """Report whether the ledger's head is served and edits are made; if not, the reasons."""
        reasons = await backend.unready()
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    return routes


def _add_edit_routes(routes: APIRouter, backend: Backend) -> None:
    @routes.post(
        "/v1/edits",
        response_model=EditsOut,
        response_model_exclude_none=True,
        status_code=202,
        responses={200: {"model": EditsOut | DryRunOut}},
    )
    async def post_edits(
        body: EditsIn, request: Request, idempotency_key: Annotated[str | None, Header()] = None, dry_run: bool = False
    ) -> Any:
        """Queue edits; with `dry_run`, nothing is queued, and the answer says what the edits would do."""
        edits = [edit.to_json() for edit in body.edits]
        if dry_run:
            return JSONResponse(await unwrapped(backend.dry_run(edits)))
        entries = await unwrapped(backend.submit(edits, body.wait, idempotency_key, _caller(request)))
        return _edits_answer(entries, body.wait)

    @routes.get("/v1/edits", response_model=EditsPage)
    async def get_edits(
        state: EditState | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Cursor | None = None,
        subject: Annotated[str | None, Query(min_length=1, max_length=MAX_IN_ADDRESS)] = None,
    ) -> Any:
        """List edits, newest first; with `subject`, the corrections of one subject."""
        return await unwrapped(backend.edits(state, limit, before, subject))

    @routes.get("/v1/edits/{id}", response_model=EditOut, response_model_exclude_none=True)
    async def get_edit(id: Name) -> Any:
        return await unwrapped(backend.edit_status(id))


def _add_proposal_routes(routes: APIRouter, backend: Backend) -> None:
    without_none: dict[str, Any] = {"response_model": ProposalOut, "response_model_exclude_none": True}

    @routes.post("/v1/proposals", response_model=ProposalsOut, response_model_exclude_none=True, status_code=201)
    async def post_proposals(
        body: ProposalsIn, request: Request, idempotency_key: Annotated[str | None, Header()] = None
    ) -> Any:
        """Propose edits: they are kept until a reviewer decides, and change nothing before."""
        edits = [edit.to_json() for edit in body.edits]
        found = await unwrapped(backend.propose(edits, idempotency_key, _caller(request)))
        return {"ids": [one["id"] for one in found], "proposals": found}

    @routes.get("/v1/proposals", response_model=ProposalsPage)
    async def get_proposals(
        state: ProposalState | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Cursor | None = None,
        after: Cursor | None = None,
    ) -> Any:
        """List proposals, newest first; with `after`, which may be 0, oldest first."""
        if before is not None and after is not None:
            raise EditRejected("give before or after, not both", code=Code.INVALID_VALUE, field="after")
        return await unwrapped(backend.proposals(ProposalQuery(limit, state, before, after)))

    @routes.get("/v1/proposals/{id}", **without_none)
    async def get_proposal(id: Name) -> Any:
        return await unwrapped(backend.proposal(id))

    @routes.post("/v1/proposals/{id}/approve", **without_none)
    async def post_approve(id: Name, request: Request, body: DecisionIn | None = None) -> Any:
        """Queue an open proposal as an edit with the same id; its author may not."""
        return await unwrapped(backend.decide(id, True, _caller(request), None if body is None else body.reason))

    @routes.post("/v1/proposals/{id}/refuse", **without_none)
    async def post_refuse(id: Name, request: Request, body: DecisionIn | None = None) -> Any:
        """Refuse an open proposal."""
        return await unwrapped(backend.decide(id, False, _caller(request), None if body is None else body.reason))


def _add_event_routes(routes: APIRouter, backend: Backend, send_timeout_s: float) -> None:
    @routes.get("/v1/edits/{id}/events", response_class=EventSourceResponse)
    async def get_edit_events(id: Name) -> EventSourceResponse:
        """Stream the edit's state and each later one as server-sent events, until it is settled."""
        await unwrapped(backend.edit_status(id))  # an unknown edit is answered with 404, which a stream cannot be
        return _stream(backend.edit_events(id), send_timeout_s)

    @routes.get("/v1/events", response_class=EventSourceResponse)
    async def get_events() -> EventSourceResponse:
        """Stream all events: `listening` first, then `edit` with the id and the state, `version`, `head`.

        What is read after `listening`, and changed by the events that follow, is complete; what was read before may be old. A
        listener that is too far behind gets `lagged` at the end.
        """
        return _stream(backend.events(), send_timeout_s)


def _add_version_routes(routes: APIRouter, backend: Backend) -> None:
    # These two read files, so they are functions without `async`, which FastAPI calls in a thread.
    @routes.get("/v1/versions")
    def get_versions(limit: Annotated[int, Query(ge=1, le=10_000)] = 100, before: Number | None = None) -> dict[str, Any]:
        """List versions, oldest first: the last `limit` of those with a number below `before`, fewer if they are large."""
        return backend.versions(limit, before)

    @routes.get("/v1/versions/{number}")
    def get_version(number: Number) -> dict[str, Any]:
        return version_json(backend.version_with_edits(number), with_edits=True)

    @routes.get("/v1/diff")
    async def get_diff(
        low: Annotated[Number, Query(alias="from")], high: Annotated[Number, Query(alias="to")]
    ) -> dict[str, Any]:
        """List the edits that only one of two versions holds, their answers, the norms of the change, and both scorecards."""
        return await backend.diff(low, high)

    @routes.post("/v1/rollback")
    async def post_rollback(body: RollbackIn, request: Request) -> dict[str, Any]:
        return await unwrapped(backend.rollback(body.version, _caller(request), body.expected_head))

    @routes.post("/v1/revert")
    async def post_revert(body: RevertIn, request: Request, dry_run: bool = False) -> dict[str, Any]:
        """Make a new version without the chosen edits; with `dry_run`, nothing is made, and the answer says what would be."""
        chosen = body.edits, body.versions, body.mode
        if dry_run:
            return await unwrapped(backend.dry_run_revert(*chosen, body.expected_head))
        return await unwrapped(backend.revert(*chosen, _caller(request), body.expected_head))

    @routes.post("/v1/blame")
    async def post_blame(body: BlameIn) -> dict[str, Any]:
        """Find the version that introduced the live answer."""
        return await unwrapped(backend.blame(asked_of(body), body.max_tokens))


def asked_of(body: AskedIn) -> Prompt:
    """Return the prompt or the dialogue of a body. Raises `EditRejected` for messages that are no dialogue."""
    if body.messages is None:
        return Dialogue.of(body.question) if body.question is not None else str(body.prompt)
    try:
        return Dialogue(messages_from_json([message.model_dump() for message in body.messages]))
    except ValueError as fault:
        raise EditRejected(str(fault), code=Code.INVALID_VALUE, field="messages") from None


def _caller(request: Request) -> str | None:
    key = request.scope.get("errata.key")
    return None if key is None else key.name


def _stream(events: AsyncIterator[tuple[str, dict[str, Any]]], send_timeout_s: float) -> EventSourceResponse:
    content = ({"event": kind, "data": json.dumps(data)} async for kind, data in events)
    return EventSourceResponse(content, ping=PING_S, send_timeout=send_timeout_s)


def _edits_answer(entries: list[dict[str, Any]], wait: bool) -> JSONResponse:
    """Answer 202 while an edit is not settled, 422 if one was rejected, 409 if one is not live, otherwise 200 with the version.

    An edit that was applied is not live after a rollback or a revert. A post repeated under its key then changes nothing.
    """
    ids = [entry["id"] for entry in entries]
    body: dict[str, Any] = {"ids": ids, "edits": entries}
    if not wait or any(entry["state"] not in SETTLED for entry in entries):
        return JSONResponse(body, 202)
    rejected = next((entry for entry in entries if entry["state"] == "rejected"), None)
    if rejected is not None:
        body |= error_body(rejected["reason"], rejected.get("code"), rejected.get("field"), rejected["id"])
        return JSONResponse(body, 422)
    gone = next((entry for entry in entries if entry.get("live") is False), None)
    if gone is not None:
        is_out = gone["state"] == "reverted"
        why = f"version {gone['version']} took it out" if is_out else f"the service went back from version {gone['version']}"
        message = f"edit {gone['id']} is not live: {why}. To make it again, post it under another Idempotency-Key"
        return JSONResponse(body | error_body(message, Code.NOT_LIVE, "edits", gone["id"]), 409)
    return JSONResponse(body | {"version": max(entry["version"] for entry in entries)}, 200)


def install(app: FastAPI, backend: Backend, limits: ServiceLimits | None = None) -> None:
    """Add our routes and error answers to an application that already has the OpenAI routes."""
    app.include_router(router(backend, limits))
    openai_invalid: Any = app.exception_handlers.get(RequestValidationError)

    async def ours(request: Request, error: Exception) -> JSONResponse:
        status, body = answer_for(error)
        again_s = error.retry_after_s if isinstance(error, QueueFull) else RETRY_AFTER_S
        return JSONResponse(body, status, {"Retry-After": str(again_s)} if status in (429, 503) else None)

    async def invalid(request: Request, error: Exception) -> Any:
        is_ours = request.url.path.startswith(OURS)
        return await (ours if is_ours or openai_invalid is None else openai_invalid)(request, error)

    app.add_exception_handler(RequestValidationError, invalid)
    for kind in ANSWERED:
        app.add_exception_handler(kind, ours)
