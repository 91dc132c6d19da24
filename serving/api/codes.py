"""Codes of errors that HTTP adds to those of an edit, `errata.edit.Code`."""

from __future__ import annotations

from enum import StrEnum


class RequestCode(StrEnum):
    """Reasons for refusing a request, for programs. They are published (`error.code`) and only ever added to."""

    INVALID_JSON = "invalid_json"  # 400
    INVALID_HEADER = "invalid_header"  # 400
    UNAUTHORIZED = "unauthorized"  # 401
    FORBIDDEN = "forbidden"  # 403
    KEY_REUSED = "key_reused"  # 409: an Idempotency-Key that came before with other edits
    CONFLICT = "conflict"  # 409: another process moved the ledger's head
    ALREADY_DECIDED = "already_decided"  # 409: a proposal that is approved or refused
    OWN_PROPOSAL = "own_proposal"  # 403: an approval by its author
    UNKNOWN_PROPOSAL = "unknown_proposal"  # 404
    HEAD_MOVED = "head_moved"  # 409: the live version is not the expected one
    NOT_SERVED_YET = "not_served_yet"  # 409: the version of X-Errata-At-Least
    ROLLED_BACK = "rolled_back"  # 409: what is served does not follow the version of X-Errata-At-Least
    TOO_LARGE = "too_large"  # 413, 414, 431: body, number of edits, address, headers
    UNSUPPORTED_TYPE = "unsupported_type"  # 415
    REQUEST_TIMEOUT = "request_timeout"  # 408: the body did not come
    TOO_MANY_TOKENS = "too_many_tokens"  # 400
    TOO_MANY_SEQUENCES = "too_many_sequences"  # 400
    TOO_MANY_LOGPROBS = "too_many_logprobs"  # 400
    STRUCTURE_TOO_LARGE = "structure_too_large"  # 400
    WALK_TOO_LONG = "walk_too_long"  # 422: blame, diff
    QUEUE_FULL = "queue_full"  # 429
    RATE_LIMITED = "rate_limited"  # 429
    CONCURRENCY_LIMITED = "concurrency_limited"  # 429: concurrent requests or sequences of one key
    TOO_MANY_STREAMS = "too_many_streams"  # 429: event streams of one key
    OVERLOADED = "overloaded"  # 429: concurrent requests of all callers
    BUSY = "busy"  # 429
    SWAPPING = "swapping"  # 503
    OUT_OF_ROTATION = "out_of_rotation"  # 503
    SWAP_FAILED = "swap_failed"  # 503
    STORAGE_FAILED = "storage_failed"  # 503: the journal, the ledger or the disk
    UNAVAILABLE = "unavailable"  # 503: the edit worker does not answer
