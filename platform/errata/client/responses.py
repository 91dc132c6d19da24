"""What the service answers, as types (nothing is checked against them at run time), and its refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    pass
from errata.edit import EditState


class EditBody(TypedDict):
    """One correction as it is posted."""

    prompt: str
    target: str
    subject: NotRequired[str]
    rephrasings: NotRequired[list[str]]


class EditOut(TypedDict):
    """An edit with its fate: `version` where it was applied, `reason` and `field` where it was not; `created` in seconds."""

    id: str
    state: EditState
    edit: dict[str, Any]
    created: float
    version: NotRequired[int]
    reason: NotRequired[str]
    field: NotRequired[str]
    poster: NotRequired[str]


class EditsAnswer(TypedDict):
    """`version` is the newest one that holds the edits; absent until all are settled."""

    ids: list[str]
    edits: list[EditOut]
    version: NotRequired[int]


class EditPage(TypedDict):
    """Newest first; `next` is the cursor of the page after it."""

    edits: list[EditOut]
    next: str | int | None


class VersionOut(TypedDict):
    version: int
    parent: int | None
    editor: str
    plan: str
    fingerprint: str
    created: str
    num_edits: int
    num_bytes: int
    norms: dict[str, float]
    ranks: dict[str, int]
    scorecard: dict[str, Any]
    edits: NotRequired[list[dict[str, Any]]]


class VersionPage(TypedDict):
    """Oldest first; `head` is the live one."""

    head: int
    newest: NotRequired[int]
    versions: list[VersionOut]


# Written as a call: `from` is a keyword.
DiffOut = TypedDict(
    "DiffOut",
    {
        "from": int,
        "to": int,
        "common": int,
        "added": list[dict[str, Any]],
        "removed": list[dict[str, Any]],
        "norms": dict[str, float],
        "scorecard": dict[str, list[float | None]],
    },
)


class RollbackOut(TypedDict):
    """`swap_error` names the replicas that do not serve the version yet."""

    version: int
    swap_ms: NotRequired[float]
    swap_error: NotRequired[str]


class RevertOut(TypedDict):
    """`swap_error` as in `RollbackOut`; if they all refuse the version, it is taken back, and the edits are in again."""

    version: int
    mode: str
    reverted: list[str]
    swap_error: NotRequired[str]
    scorecard: dict[str, Any]


class BlameOut(TypedDict):
    """`version` is None where the model said so before any edit; `edits` are that version's, likeliest first."""

    prompt: str
    version: int | None
    before: str | None
    after: str
    edits: list[dict[str, Any]]
    num_asked: int


class Readiness(TypedDict):
    ready: bool
    reasons: NotRequired[list[str]]
