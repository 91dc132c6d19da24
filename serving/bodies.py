"""What our routes take and give, as pydantic models: the checks at the door."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool


def _encodable(text: str) -> str:
    """A lone surrogate can be written in JSON, and nowhere else."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no text in UTF-8") from None
    return text


MAX_EDITS = 10_000
Name = Annotated[str, Field(max_length=64)]
Number = Annotated[int, Field(ge=0, le=2**31)]
StrictNumber = Annotated[int, Field(ge=0, le=2**31, strict=True)]  # in a body: there `true` is no number
Cursor = Annotated[int, Field(ge=0, le=2**62)]
Text = Annotated[str, AfterValidator(_encodable)]


class EditIn(BaseModel):
    """One correction, as posted."""

    model_config = ConfigDict(extra="forbid")
    prompt: Text
    target: Text
    subject: Text | None = None
    rephrasings: list[Text] = Field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)


class EditsIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    edits: list[EditIn] = Field(min_length=1, max_length=MAX_EDITS)
    wait: StrictBool = False


class RollbackIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: StrictNumber


class RevertIn(BaseModel):
    """Edits by their ids, or all edits of versions; `mode` says how they are taken out."""

    model_config = ConfigDict(extra="forbid")
    edits: list[Name] = Field(default_factory=list)
    versions: list[StrictNumber] = Field(default_factory=list)
    mode: Literal["auto", "subtract", "replay"] = "auto"


class BlameIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prompt: Text = Field(min_length=1)
    max_tokens: int = Field(8, ge=1, le=256, strict=True)


class EditOut(BaseModel):
    """`version` where it was applied, superseded or reverted; `reason` and `field` where it was refused."""

    id: str
    state: Literal["queued", "applying", "applied", "rejected", "superseded", "reverted"]
    edit: dict[str, Any]
    created: float
    version: int | None = None
    reason: str | None = None
    field: str | None = None
    poster: str | None = None


class EditsOut(BaseModel):
    """`version` is the newest one that holds the edits; absent until all are settled."""

    ids: list[str]
    edits: list[EditOut]
    version: int | None = None


class EditsPage(BaseModel):
    """Newest first; `next` is the value of `before` that goes on, null at the end."""

    edits: list[EditOut]
    next: int | None


class Fault(BaseModel):
    """What was wrong: in which field, of which edit."""

    message: str
    field: str | None
    edit: int | str | None


class Refusal(BaseModel):
    error: Fault
