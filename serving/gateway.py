"""The HTTP interface beside the OpenAI routes: edits, versions, rollback, status. Errors become HTTP codes here alone."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from errata.edit import EditRejected
from errata.generate import SwapFailed
from errata.ledger import LedgerConflict, UnknownVersion, Version
from serving.journal import KeyReused, UnknownEdit

Answer = TypeVar("Answer")


class EditIn(BaseModel):
    """One correction, as posted."""

    model_config = ConfigDict(extra="forbid")
    prompt: str
    target: str
    subject: str | None = None
    rephrasings: list[str] = Field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)


class EditsIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    edits: list[EditIn]
    wait: bool = False


class RollbackIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: int = Field(ge=0)


class EditOut(BaseModel):
    """`version` where it was applied; `reason` and `field` where it was rejected."""

    id: str
    state: str
    edit: dict[str, Any]
    created: float
    version: int | None = None
    reason: str | None = None
    field: str | None = None


class EditsOut(BaseModel):
    """`version` is the newest one that holds the edits; absent until all are settled."""

    ids: list[str]
    edits: list[EditOut]
    version: int | None = None


class Backend(Protocol):
    """What the routes need; the replica provides it, partly from the edit worker."""

    async def submit(self, edits: list[dict[str, Any]], wait: bool, key: str | None) -> list[dict[str, Any]]: ...

    async def edit_status(self, id: str) -> dict[str, Any]: ...

    async def rollback(self, version: int) -> dict[str, Any]: ...

    async def service_status(self) -> dict[str, Any]: ...

    def versions(self) -> tuple[int, list[Version]]: ...

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


def router(backend: Backend) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/edits", response_model=EditsOut, response_model_exclude_none=True, status_code=202)
    async def post_edits(body: EditsIn, idempotency_key: Annotated[str | None, Header()] = None) -> Any:
        edits = [edit.to_json() for edit in body.edits]
        entries = await unwrapped(backend.submit(edits, body.wait, idempotency_key))
        return _edits_answer(entries, body.wait)

    @routes.get("/v1/edits/{id}", response_model=EditOut, response_model_exclude_none=True)
    async def get_edit(id: str) -> dict[str, Any]:
        return await unwrapped(backend.edit_status(id))

    @routes.get("/v1/versions")
    async def get_versions() -> dict[str, Any]:
        head, versions = backend.versions()
        return {"head": head, "versions": [version_json(version, with_edits=False) for version in versions]}

    @routes.get("/v1/versions/{number}")
    async def get_version(number: int) -> dict[str, Any]:
        return version_json(backend.version_with_edits(number), with_edits=True)

    @routes.post("/v1/rollback")
    async def post_rollback(body: RollbackIn) -> dict[str, Any]:
        return await unwrapped(backend.rollback(body.version))

    @routes.get("/v1/status")
    async def get_status() -> dict[str, Any]:
        return await unwrapped(backend.service_status())

    return routes


def _edits_answer(entries: list[dict[str, Any]], wait: bool) -> JSONResponse:
    """202 while something is open, 422 if something was rejected, else 200 with the version."""
    ids = [entry["id"] for entry in entries]
    body: dict[str, Any] = {"ids": ids, "edits": entries}
    if not wait or any(entry["state"] not in ("applied", "rejected") for entry in entries):
        return JSONResponse(body, 202)
    rejected = next((entry for entry in entries if entry["state"] == "rejected"), None)
    if rejected is not None:
        body |= _error(rejected["reason"], rejected.get("field"), rejected["id"])
        return JSONResponse(body, 422)
    return JSONResponse(body | {"version": max(entry["version"] for entry in entries)}, 200)


async def unwrapped(answer: Awaitable[Answer]) -> Answer:
    """The answer of another deployment, or the error it raised there, without Ray's wrapping."""
    try:
        return await answer
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None


def _error(message: str, field: str | None = None, edit: int | str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "field": field, "edit": edit}}


def _invalid_body(error: RequestValidationError) -> tuple[int, dict[str, Any]]:
    """pydantic's places read `body, edits, 0, prompt`: the number is the edit, the rest the field."""
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return 400, _error("the body is not JSON", "body")
    place = [part for part in faults[0]["loc"] if part not in ("body", "path")]
    index = next((part for part in place if isinstance(part, int)), None)
    named = [str(part) for part in place if not isinstance(part, int)]
    field = named[-1] if named else "body"
    message = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
    return 422, _error(message, field, index)


def answer_for(error: Exception) -> tuple[int, dict[str, Any]]:
    """(HTTP code, body) of an error of the house."""
    match error:
        case RequestValidationError():
            return _invalid_body(error)
        case EditRejected():
            return 422, _error(str(error), error.field, error.edit)
        case UnknownVersion():
            return 404, _error(str(error), "version")
        case UnknownEdit():
            return 404, _error(str(error), "id")
        case KeyReused():
            return 409, _error(str(error), "Idempotency-Key")
        case LedgerConflict():
            return 409, _error(str(error))
        case SwapFailed():
            return 503, _error(str(error))
    return 503, _error(f"the edit worker cannot be reached and is being restarted: {type(error).__name__}")


def install(app: FastAPI, backend: Backend) -> None:
    """Our routes and error answers on an application that already has the OpenAI routes."""
    app.include_router(router(backend))
    openai_invalid: Any = app.exception_handlers.get(RequestValidationError)

    async def ours(request: Request, error: Exception) -> JSONResponse:
        code, body = answer_for(error)
        return JSONResponse(body, code)

    async def invalid(request: Request, error: Exception) -> Any:
        is_ours = request.url.path.startswith(("/v1/edits", "/v1/versions", "/v1/rollback"))
        return await (ours if is_ours or openai_invalid is None else openai_invalid)(request, error)

    app.add_exception_handler(RequestValidationError, invalid)
    unreachable = (RayActorError, DeploymentUnavailableError, BackPressureError)
    for kind in (EditRejected, UnknownVersion, UnknownEdit, KeyReused, LedgerConflict, SwapFailed, *unreachable):
        app.add_exception_handler(kind, ours)
