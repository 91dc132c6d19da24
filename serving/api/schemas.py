"""What our routes take and give, as pydantic models: the checks at the door."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator


def _encodable(text: str) -> str:
    """A lone surrogate can be written in JSON, and nowhere else."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no text in UTF-8") from None
    return text


# All texts of a post are tokenised by the one writer, which does nothing else meanwhile.
MAX_EDITS = 1_000
MAX_REPHRASINGS = 64  # of one edit
MAX_REPHRASINGS_POSTED = 4_096  # of all edits of a post
MAX_CHARACTERS = 16_384
Name = Annotated[str, Field(max_length=64)]
Number = Annotated[int, Field(ge=0, le=2**31)]
StrictNumber = Annotated[int, Field(ge=0, le=2**31, strict=True)]  # in a body: there `true` is no number
Cursor = Annotated[int, Field(ge=0, le=2**62)]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_encodable)]


class EditIn(BaseModel):
    """One correction, as posted."""

    model_config = ConfigDict(extra="forbid")
    prompt: Text
    target: Text
    subject: Text | None = None
    rephrasings: list[Text] = Field(default_factory=list, max_length=MAX_REPHRASINGS)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)


class EditsIn(BaseModel):
    """Edits have at most 4,096 rephrasings in all."""

    model_config = ConfigDict(extra="forbid")
    edits: list[EditIn] = Field(min_length=1, max_length=MAX_EDITS)
    wait: StrictBool = False

    @model_validator(mode="after")
    def _is_moderate(self) -> EditsIn:
        if (posted := sum(len(edit.rephrasings) for edit in self.edits)) > MAX_REPHRASINGS_POSTED:
            raise ValueError(
                f"the edits have {posted:,} rephrasings, and a post at most {MAX_REPHRASINGS_POSTED:,}; post fewer"
            )
        return self


class RollbackIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: StrictNumber


class RevertIn(BaseModel):
    """Edits by their ids, or all edits of versions; `mode` says how they are taken out."""

    model_config = ConfigDict(extra="forbid")
    edits: list[Name] = Field(default_factory=list, max_length=MAX_EDITS)
    versions: list[StrictNumber] = Field(default_factory=list, max_length=MAX_EDITS)
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
