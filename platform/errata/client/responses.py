"""Answers of the service as types; nothing is checked against them at run time."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from errata.edit import EditState


class AnswersOut(TypedDict):
    """The model's answers to an edit's prompt before the edit, where it was asked, and after it."""

    before: NotRequired[str]
    after: str


class EditOut(TypedDict):
    """An edit with its state: `version` if it was applied; `reason`, `code` and `field` if not; `created` in seconds.

    `live` says of an edit that was applied once if the live version holds it, and `carried_by` if a record of its memory
    answers it or its weights do.
    `changed` is false for an applied edit whose answer the model gave already; `answered` is false if later edits have made it
    lose the answer. `says` is what the model says instead of the target of such an edit, or of a rejected one. `repaired_in` is
    the last version that made a lost edit again. `contradicts` has the ids of the edits that it contradicted when it was
    posted. A live edit held from `held_from` until the day before `held_to`; `superseded_by` is the later edit that ended it.
    """

    id: str
    state: EditState
    edit: dict[str, Any]
    created: float
    version: NotRequired[int]
    reason: NotRequired[str]
    code: NotRequired[str]
    field: NotRequired[str]
    poster: NotRequired[str]
    approver: NotRequired[str]
    live: NotRequired[bool]
    carried_by: NotRequired[Literal["memory", "weights"]]
    changed: NotRequired[bool]
    answered: NotRequired[bool]
    says: NotRequired[str]
    repaired_in: NotRequired[int]
    answers: NotRequired[AnswersOut]
    contradicts: NotRequired[list[str]]
    held_from: NotRequired[str]
    held_to: NotRequired[str]
    superseded_by: NotRequired[str]


class AskedOut(TypedDict):
    """Answers in the order of the prompts, and the oldest and the newest version that gave them."""

    answers: list[str]
    version_min: int
    version_max: int


class EditsAnswer(TypedDict):
    """Posted edits; `version` is the newest version that holds them, absent until all are settled."""

    ids: list[str]
    edits: list[EditOut]
    version: NotRequired[int]


class TriedEditOut(TypedDict):
    """The state that an edit would come to, and the model's answers: `unedited`, `before` it and `after` it, where known.

    `contradicts` has the ids of the edits that it contradicts.
    """

    edit: dict[str, Any]
    state: EditState
    changed: NotRequired[bool]
    unedited: NotRequired[str]
    before: NotRequired[str]
    after: NotRequired[str]
    code: NotRequired[str]
    reason: NotRequired[str]
    field: NotRequired[str]
    contradicts: NotRequired[list[str]]


class DryRunOut(TypedDict):
    """The effect that a post of edits would have on the version `head`; nothing was done.

    `guard` has the figures of each attempt; `neighbours` has the `edits` and `probes` whose answers would change.
    """

    dry_run: bool
    head: int
    edits: list[TriedEditOut]
    guard: list[dict[str, Any]]
    neighbours: dict[str, Any]


class EditPage(TypedDict):
    """A page of edits, newest first; `next` is the cursor of the next page."""

    edits: list[EditOut]
    next: str | int | None


ProposalState = Literal["open", "approved", "refused"]


class ProposalOut(TypedDict):
    """A proposed edit with its state; times in seconds. An approved one is the edit of the same id.

    In a page, `author`, `decided`, `decider` and `reason` are None where they are missing.
    """

    id: str
    state: ProposalState
    edit: dict[str, Any]
    created: float
    author: NotRequired[str | None]
    decided: NotRequired[float | None]
    decider: NotRequired[str | None]
    reason: NotRequired[str | None]


class ProposalPage(TypedDict):
    """A page of proposals, newest first; `next` is the cursor of the next page."""

    proposals: list[ProposalOut]
    next: int | None


class VersionOut(TypedDict):
    """One version; `edits` only if it was asked for by its number."""

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
    """A page of versions, oldest first; `head` is the live version."""

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
        "answers": list[dict[str, str]],
        "norms": dict[str, float],
        "scorecard": dict[str, list[float | None]],
    },
)


class RollbackOut(TypedDict):
    """The version that is live again; `swap_error` names replicas that do not serve it yet."""

    version: int
    swap_ms: NotRequired[float]
    swap_error: NotRequired[str]


class RevertOut(TypedDict):
    """The version without the chosen edits; `swap_error` as in `RollbackOut`.

    If all replicas refuse the version, it is retracted, and the edits are live again.
    """

    version: int
    mode: str
    reverted: list[str]
    swap_error: NotRequired[str]
    scorecard: dict[str, Any]


class RevertDryRunOut(TypedDict):
    """The effect that a revert would have on the version `head`; nothing was done.

    If the guard would `publish` the version, `scorecard` is the one that it would have, with `reverted_answers`; otherwise
    `breaches` has the limits that it passes.
    """

    dry_run: bool
    head: int
    publish: bool
    mode: NotRequired[str]
    reverted: NotRequired[list[str]]
    scorecard: NotRequired[dict[str, Any]]
    neighbours: NotRequired[dict[str, Any]]
    breaches: NotRequired[list[dict[str, Any]]]
    scores: NotRequired[dict[str, Any]]
    limits: NotRequired[dict[str, Any]]


class BlameOut(TypedDict):
    """The version that changed the answer, or None if no edit did; `edits` are that version's, most likely first."""

    prompt: str
    version: int | None
    before: str | None
    after: str
    edits: list[dict[str, Any]]
    num_asked: int


class ReportedFault(TypedDict):
    """One fault that makes the service refuse a post; `edit` is a position in it."""

    edit: int | str | None
    field: str | None
    code: str
    reason: str
    says: NotRequired[str]


class ReadyOut(TypedDict):
    """Readiness of the service, with the reasons if it is not ready."""

    ready: bool
    reasons: NotRequired[list[str]]
