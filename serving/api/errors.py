"""HTTP answers for errors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayTaskError

from errata.edit import Code, EditRejected
from errata.generate import SwapFailed
from errata.history.revert_selection import RevertRefused
from errata.ledger import LedgerConflict, LedgerDamaged, UnknownVersion
from serving.worker.edit_worker import Busy
from serving.worker.journal import JournalFailed, KeyReused, QueueFull, UnknownEdit

Answer = TypeVar("Answer")
RETRY_AFTER_S = 2


async def unwrapped(answer: Awaitable[Answer]) -> Answer:
    """The answer of another deployment, or the error it raised there, without Ray's wrapping."""
    try:
        return await answer
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None


def _error(message: str, field: str | None = None, edit: int | str | None = None) -> dict[str, Any]:
    """Names of fields come from the caller, and may be no text: the answer must be."""
    parts = {"message": message, "field": field, "edit": edit}
    return {
        "error": {
            name: part.encode("utf-8", "replace").decode() if isinstance(part, str) else part for name, part in parts.items()
        }
    }


def _invalid_body(error: RequestValidationError) -> tuple[int, dict[str, Any]]:
    """pydantic's places read `body, edits, 0, prompt`: the number is the edit, the rest the field."""
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return 400, _error("the body is not JSON", "body")
    place = [part for part in faults[0]["loc"] if part not in ("body", "path", "query", "header")]
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
        case RevertRefused():
            status = {Code.UNKNOWN_EDIT: 404, Code.UNKNOWN_VERSION: 404, Code.NOT_LIVE: 409}.get(error.code, 422)
            return status, _error(str(error), error.field, error.edit)
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
        case QueueFull():
            return (429 if error.num_edits <= error.limit else 413), _error(str(error), "edits")
        case Busy():
            return 429, _error(str(error))
        case SwapFailed() | JournalFailed() | OSError() | LedgerDamaged():
            return 503, _error(str(error))
    return 503, _error(f"the edit worker cannot be reached and is being restarted: {type(error).__name__}")
