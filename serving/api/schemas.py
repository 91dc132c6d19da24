"""Request and answer bodies of our routes as pydantic models: the checks of a request, and the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from errata.access_keys import Key
from errata.client.responses import ProposalState
from errata.edit import EditState
from errata.text.dialogue import Form, Role

# Bounds for the edit worker, which tokenises all texts of a post and does nothing else meanwhile.
MAX_EDITS = 1_000
MAX_REPHRASINGS = 64  # of one edit
MAX_REPHRASINGS_POSTED = 4_096  # of all edits of a post
MAX_MESSAGES = 64
MAX_ALIASES = 64
MAX_CHARACTERS = 16_384
MAX_IN_ADDRESS = 500  # A character has at most 12 bytes in an address, and an address 8 KiB (docs/access.md).
# A length limit also makes pydantic refuse a lone surrogate, which JSON can spell and UTF-8 cannot.
Name = Annotated[str, Field(max_length=64)]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Question = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Number = Annotated[int, Field(ge=0, le=2**31)]
StrictNumber = Annotated[int, Field(ge=0, le=2**31, strict=True)]  # in a body, where `true` is not a number
AccessRole = Literal["read", "propose", "edit", "admin"]
Cursor = Annotated[int, Field(ge=0, le=2**62)]


class MessageIn(BaseModel):
    """One message of a dialogue."""

    model_config = ConfigDict(extra="forbid")
    role: Role
    content: Text


class AskedIn(BaseModel):
    """Prompt of a request: a `prompt`, or in chat a `question`, or `messages` that end with the user's question."""

    model_config = ConfigDict(extra="forbid")
    prompt: Text | None = None
    question: Text | None = None
    messages: list[MessageIn] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)

    @model_validator(mode="after")
    def _is_one_of_three(self) -> Self:
        given = [name for name in ("prompt", "question", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none of them is given"
            message = f"give one of prompt, question and messages: {found}"
            context = {"message": message, "field": given[-1] if given else "prompt"}
            raise PydanticCustomError("missing" if not given else "value_error", "{message}", context)
        return self


class EditIn(AskedIn):
    """One correction, as posted; without `form`, a prompt is asked in the model's own form.

    In chat an answer is right if it contains the `target` or one of the `aliases`, and `answer` is the whole text to be said;
    without it, one is made of what the model says now. The fact holds from `valid_from` until the day before `valid_to`
    (YYYY-MM-DD); `source` is a URL or a note, `reason` why it is corrected.
    """

    target: Text
    subject: Text | None = None
    aliases: list[Text] = Field(default_factory=list, max_length=MAX_ALIASES)
    answer: Text | None = None
    rephrasings: list[Text] = Field(default_factory=list, max_length=MAX_REPHRASINGS)
    form: Form | None = None
    source: Text | None = None
    valid_from: Text | None = None
    valid_to: Text | None = None
    reason: Text | None = None

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)


class ProposalsIn(BaseModel):
    """Edits to propose, with at most 4,096 rephrasings in all."""

    model_config = ConfigDict(extra="forbid")
    edits: list[EditIn] = Field(min_length=1, max_length=MAX_EDITS)

    @model_validator(mode="after")
    def _has_few_rephrasings(self) -> Self:
        if (posted := sum(len(edit.rephrasings) for edit in self.edits)) > MAX_REPHRASINGS_POSTED:
            message = f"the edits have {posted:,} rephrasings, and a post at most {MAX_REPHRASINGS_POSTED:,}; post fewer"
            raise PydanticCustomError("too_long", "{message}", {"message": message})
        return self


class EditsIn(ProposalsIn):
    """Edits to make, with at most 4,096 rephrasings in all; with `wait`, the answer comes when they are settled."""

    wait: StrictBool = False


class DecisionIn(BaseModel):
    """The reason of a reviewer, for the author to read."""

    model_config = ConfigDict(extra="forbid")
    reason: Text | None = None


class RollbackIn(BaseModel):
    """The version to serve; with `expected_head` it is refused (409) unless that is the live version."""

    model_config = ConfigDict(extra="forbid")
    version: StrictNumber
    expected_head: StrictNumber | None = None


class RevertIn(BaseModel):
    """Edits to take out, by their ids or as whole versions; `mode` is how, `expected_head` as in a rollback."""

    model_config = ConfigDict(extra="forbid")
    edits: list[Name] = Field(default_factory=list, max_length=MAX_EDITS)
    versions: list[StrictNumber] = Field(default_factory=list, max_length=MAX_EDITS)
    mode: Literal["auto", "subtract", "downdate", "replay"] = "auto"
    expected_head: StrictNumber | None = None


class BlameIn(AskedIn):
    """A prompt or a dialogue whose answer is traced to a version; `prompt` is the text of a completion."""

    prompt: Question | None = None
    question: Question | None = None
    max_tokens: int = Field(8, ge=1, le=256, strict=True)


class AnswersOut(BaseModel):
    """The model's answers to an edit's prompt before the edit, where it was asked, and after it."""

    before: str | None = None
    after: str


class EditOut(BaseModel):
    """An edit with its state: `version` if it was applied, superseded or reverted; `reason`, `code` and `field` if refused.

    `live` says of an edit that was applied once if the live version holds it, which a rollback or a revert ends, and
    `carried_by` if a record of its memory answers it or its weights do.
    `changed` is false for an applied edit whose answer the model gave already. `answered` says if the live version answers a
    single edit; without it, it was not asked yet, or a later edit has the same prompt. `says` is what the model says instead of
    the target: the live version, for an applied edit that is not answered; for a rejected one with the code `ineffective` the
    edited model, with another code the version that was live. `repaired_in` is the last version that made a lost edit again.
    `contradicts` has the ids of the edits that it contradicted when it was posted. A live edit held from `held_from` until the
    day before `held_to`, without a bound that is not known; `superseded_by` is the later edit that ended it.
    `poster` and `approver` are names of keys: of the author, and of the reviewer who approved the edit as a proposal.
    """

    id: str
    state: EditState
    edit: dict[str, Any]
    created: float
    version: int | None = None
    reason: str | None = None
    code: str | None = None
    field: str | None = None
    poster: str | None = None
    approver: str | None = None
    live: bool | None = None
    carried_by: Literal["memory", "weights"] | None = None
    changed: bool | None = None
    answered: bool | None = None
    says: str | None = None
    repaired_in: int | None = None
    answers: AnswersOut | None = None
    contradicts: list[str] | None = None
    held_from: str | None = None
    held_to: str | None = None
    superseded_by: str | None = None


class ProposalOut(BaseModel):
    """A proposed edit; `author` and `decider` are names of keys. An approved one is the edit of the same id."""

    id: str
    state: ProposalState
    edit: dict[str, Any]
    created: float
    author: str | None = None
    decided: float | None = None
    decider: str | None = None
    reason: str | None = None


class ProposalsOut(BaseModel):
    """Posted proposals."""

    ids: list[str]
    proposals: list[ProposalOut]


class ProposalsPage(BaseModel):
    """A page of proposals; `next` is the value of `before`, or of `after`, for the next page, null at the end."""

    proposals: list[ProposalOut]
    next: int | None


class EditsOut(BaseModel):
    """Posted edits; `version` is the newest version that holds them, absent until all are settled."""

    ids: list[str]
    edits: list[EditOut]
    version: int | None = None


class TriedEditOut(BaseModel):
    """The state that an edit would come to: as `EditOut`, with the answers `before` and `after` it where they are known.

    `unedited` is the answer of version 0, the model without any edit. `edit` has the composed answer, if one would be composed;
    `contradicts` as in `EditOut`.
    """

    edit: dict[str, Any]
    state: Literal["applied", "rejected", "superseded"]
    changed: bool | None = None
    unedited: str | None = None
    before: str | None = None
    after: str | None = None
    code: str | None = None
    reason: str | None = None
    field: str | None = None
    contradicts: list[str] | None = None


class GuardOut(BaseModel):
    """The guard's figures for the edits at these positions as one version, and whether it would publish it."""

    edits: list[int]
    publish: bool
    breaches: list[dict[str, Any]]
    warnings: list[str]
    scores: dict[str, Any]
    limits: dict[str, Any]


class NeighboursOut(BaseModel):
    """Answers that would change beside the edits: of earlier edits (`lost`: not answered any more) and of probe questions.

    Of `num_edits` edits that the live version holds, the `num_edits_asked` whose words are nearest were asked.
    """

    edits: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    num_edits_asked: int
    num_edits: int
    num_probes: int


class DryRunOut(BaseModel):
    """The effect that a post of edits would have on the version `head`; nothing was done."""

    dry_run: Literal[True]
    head: int
    edits: list[TriedEditOut]
    guard: list[GuardOut]
    neighbours: NeighboursOut


class EditsPage(BaseModel):
    """A page of edits, newest first; `next` is the value of `before` for the next page, null at the end."""

    edits: list[EditOut]
    next: int | None


class KeyOut(BaseModel):
    """The caller's key; without a file of keys it has no name, and every caller may do all."""

    name: str | None
    role: AccessRole
    expires: datetime | None

    @classmethod
    def of(cls, key: Key | None) -> KeyOut:
        if key is None:
            return cls(name=None, role="admin", expires=None)
        return cls.model_validate({"name": key.name, "role": key.role, "expires": key.expires})


class FaultOut(BaseModel):
    """One fault: edit, field, code and reason, and what the model `says` instead of the target, where it was asked."""

    edit: int | str | None
    field: str | None
    code: str
    reason: str
    says: str | None = None


class ErrorOut(BaseModel):
    """The reason for a refusal: `code` for programs (docs/serving.md lists all), `message` for people.

    `field` and `edit` (position or id) name what is at fault; `faults` lists all faults of a body or of posted edits.
    """

    message: str
    code: str | None
    field: str | None
    edit: int | str | None
    faults: list[FaultOut] | None = None


class RefusalOut(BaseModel):
    """The body of every error answer."""

    error: ErrorOut
