"""HTTP answers for errors: status, and a body `{"error": {"message", "code", "field", "edit", "faults"}}`."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayTaskError

from errata.edit import Code, EditRejected, Fault
from errata.generate import SwapFailed
from errata.history.budget import WalkTooLong
from errata.history.revert_selection import RevertRefused
from errata.ledger import HeadMoved, LedgerConflict, LedgerDamaged, UnknownVersion
from serving.api.codes import RequestCode
from serving.worker.journal import JournalFailed, KeyReused, UnknownEdit
from serving.worker.proposals import AlreadyDecided, OwnProposal, UnknownProposal
from serving.worker.queue_limit import QueueFull
from serving.worker.refusals import Busy

Answer = TypeVar("Answer")
RETRY_AFTER_S = 2
# Kinds of pydantic's errors, with the codes of edits; all other kinds are wrong types or invalid values.
_CODES = {
    "missing": Code.MISSING_FIELD,
    "extra_forbidden": Code.UNKNOWN_FIELD,
    "string_too_long": Code.TOO_LONG,
    "too_long": Code.TOO_LONG,
    "string_too_short": Code.EMPTY_FIELD,
    "too_short": Code.EMPTY_FIELD,
    "string_unicode": Code.NOT_TEXT,
}
_REVERT_STATUS = {Code.UNKNOWN_EDIT: 404, Code.UNKNOWN_VERSION: 404, Code.NOT_LIVE: 409}


async def unwrapped(answer: Awaitable[Answer]) -> Answer:
    """Await the answer of another deployment, and raise its error without Ray's wrapping."""
    try:
        return await answer
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None


def error_body(
    message: str,
    code: str | None,
    field: str | None = None,
    edit: int | str | None = None,
    faults: Sequence[Fault] = (),
) -> dict[str, Any]:
    """Make the body of an error answer; `faults` lists all that is wrong with posted edits, the first one included."""
    error: dict[str, Any] = {"message": message, "code": code and str(code), "field": field, "edit": edit}
    if faults:
        error["faults"] = [{name: _encodable(part) for name, part in fault.to_json().items()} for fault in faults]
    return {"error": {name: _encodable(part) for name, part in error.items()}}


def _encodable(part: Any) -> Any:
    """Replace lone surrogates, which a field name from the caller may contain, because the answer is UTF-8."""
    return part.encode("utf-8", "replace").decode() if isinstance(part, str) else part


def answer_for(error: Exception) -> tuple[int, dict[str, Any]]:
    """Choose (HTTP status, body) for an error that the routes raise."""
    match error:
        case RequestValidationError():
            return _invalid_body(error)
        case EditRejected():
            status = _REVERT_STATUS.get(error.code, 422) if isinstance(error, RevertRefused) else 422
            return status, error_body(str(error), error.code, error.field, error.edit, error.faults)
        case UnknownVersion():
            return 404, error_body(str(error), Code.UNKNOWN_VERSION, "version")
        case UnknownEdit():
            return 404, error_body(str(error), Code.UNKNOWN_EDIT, "id")
        case UnknownProposal():
            return 404, error_body(str(error), RequestCode.UNKNOWN_PROPOSAL, "id")
        case AlreadyDecided():
            return 409, error_body(str(error), RequestCode.ALREADY_DECIDED, "id")
        case OwnProposal():
            return 403, error_body(str(error), RequestCode.OWN_PROPOSAL, "Authorization")
        case KeyReused():
            return 409, error_body(str(error), RequestCode.KEY_REUSED, "Idempotency-Key")
        case HeadMoved():
            return 409, error_body(str(error), RequestCode.HEAD_MOVED, "expected_head")
        case LedgerConflict():
            return 409, error_body(str(error), RequestCode.CONFLICT)
        case QueueFull() if error.is_too_large:
            return 413, error_body(str(error), RequestCode.TOO_LARGE, "edits")
        case QueueFull():
            return 429, error_body(str(error), RequestCode.QUEUE_FULL, "edits")
        case WalkTooLong():
            return 422, error_body(str(error), RequestCode.WALK_TOO_LONG)
        case Busy():
            return 429, error_body(str(error), RequestCode.BUSY)
        case SwapFailed():
            return 503, error_body(str(error), RequestCode.SWAP_FAILED)
        case JournalFailed() | OSError() | LedgerDamaged():
            return 503, error_body(str(error), RequestCode.STORAGE_FAILED)
    message = f"the edit worker cannot be reached and is being restarted: {type(error).__name__}"
    return 503, error_body(message, RequestCode.UNAVAILABLE)


def _invalid_body(error: RequestValidationError) -> tuple[int, dict[str, Any]]:
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        return 400, error_body("the body is not JSON", RequestCode.INVALID_JSON, "body")
    faults = [_fault_of(one) for one in found]
    message = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
    return 422, error_body(message, faults[0].code, faults[0].field, faults[0].edit, faults)


def _fault_of(found: dict[str, Any]) -> Fault:
    """Translate an error of pydantic. In its place `body, edits, 0, prompt`, the number is the edit and the rest the field.

    A check of several fields names the one at fault in its context.
    """
    place = [part for part in found["loc"] if part not in ("body", "path", "query", "header")]
    index = next((part for part in place if isinstance(part, int)), None)
    named = [part for part in place if isinstance(part, str)]
    kind = found["type"]
    is_type = kind.endswith(("_type", "_parsing", "_from_float"))
    field = found.get("ctx", {}).get("field") or (named[-1] if named else "body")
    code = _CODES.get(kind, Code.WRONG_TYPE if is_type else Code.INVALID_VALUE)
    return Fault(index, field, code, found["msg"])
