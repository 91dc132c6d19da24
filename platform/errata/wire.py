"""What the service answers, as types (nothing is checked against them at run time), and its refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

if TYPE_CHECKING:
    import httpx

EditState = Literal["queued", "applying", "applied", "rejected", "superseded", "reverted"]
SETTLED = frozenset({"applied", "rejected", "superseded", "reverted"})


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


@dataclass(frozen=True)
class Event:
    """A server-sent event: `data` is its JSON."""

    name: str
    data: Any


class ErrataError(RuntimeError):
    """The service refused: status code, what it said was wrong, the JSON of its answer, in how many seconds to ask again."""

    def __init__(self, status: int, message: str, answer: Any = None, retry_after_s: float | None = None) -> None:
        super().__init__(status, message, answer, retry_after_s)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s
        self.answer: dict[str, Any] = answer if isinstance(answer, dict) else {}

    def __str__(self) -> str:
        return f"{self.message} (HTTP {self.status})" if self.status else self.message

    @property
    def edit(self) -> int | str | None:
        """Which edit is meant: its position in what was posted, or its id."""
        error = self.answer.get("error")
        return error.get("edit") if isinstance(error, dict) else None

    @classmethod
    def of(cls, response: httpx.Response) -> ErrataError:
        after = response.headers.get("Retry-After", "")
        retry_after_s = float(after) if after.isascii() and after.isdigit() else None
        try:
            answer = response.json()
        except ValueError:
            return cls(response.status_code, response.text[:500] or response.reason_phrase, None, retry_after_s)
        error = (answer.get("error") or answer.get("detail") or answer) if isinstance(answer, dict) else answer
        message = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        return cls(response.status_code, message, answer, retry_after_s)


class Unreachable(ErrataError):
    """No answer came: refused, broken off, or too late. Its status is 0."""
