"""The reasons for which an edit is refused: their codes, one fault, and the refusal with all faults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """Reasons for a refusal, for programs: labels of metrics, error bodies of the API, groups of skipped records.

    Values are stored (`refusals.jsonl`, the journal) and published (`error.code`): they are only ever added to.
    """

    # the content of an edit
    EMPTY_FIELD = "empty_field"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    WRONG_TYPE = "wrong_type"
    INVALID_VALUE = "invalid_value"
    NOT_TEXT = "not_text"  # bytes that are not UTF-8, or a character that `text_fault` refuses
    TOO_LONG = "too_long"
    SUBJECT_NOT_IN_PROMPT = "subject_not_in_prompt"
    INVALID_DATE = "invalid_date"  # a text that is no day of the calendar
    INVALID_PERIOD = "invalid_period"  # a fact that ends before it begins
    INVALID_URL = "invalid_url"
    EMPTY_BATCH = "empty_batch"
    BATCH_SIZE = "batch_size"
    CONTRADICTED = "contradicted"  # a later edit of the batch gives the prompt another target
    NO_CHAT = "no_chat"  # a dialogue for a model without a chat template
    TEMPLATE_REFUSES = "template_refuses"  # messages that the model's chat template does not take
    UNWRITABLE = "unwritable"  # an answer that no tokens write after its prompt
    INEFFECTIVE = "ineffective"  # the edited model answers otherwise, also after the edit was made again and stronger
    # a file of edits
    UNREADABLE_RECORD = "unreadable_record"
    UNREADABLE_FILE = "unreadable_file"
    UNKNOWN_FORMAT = "unknown_format"
    EMPTY_FILE = "empty_file"
    # the computation of an update
    NOT_FINITE = "not_finite"
    UNSOLVABLE = "unsolvable"
    TARGET_TOO_FAR = "target_too_far"
    OUT_OF_CAPACITY = "out_of_capacity"
    MEMORY_FULL = "memory_full"  # a memory beside the weights that holds as many records as it may
    UNKNOWN_MATRIX = "unknown_matrix"
    EDITOR_FAILED = "editor_failed"
    ABANDONED = "abandoned"  # attempted too often without a result
    # the guard: the limit that the version passes
    GUARD_NOT_FINITE = "guard.not_finite"
    GUARD_PERPLEXITY = "guard.perplexity"
    GUARD_BROKEN = "guard.broken"
    GUARD_CHANGE = "guard.change"
    GUARD_GROWTH = "guard.growth"
    GUARD_FORGOTTEN = "guard.forgotten"
    GUARD_DRIFT = "guard.drift"
    GUARD_DISTURBED = "guard.disturbed"
    GUARD_UNANSWERED = "guard.unanswered"
    GUARD_FIRES = "guard.fires"
    # a revert
    NOTHING_CHOSEN = "nothing_chosen"
    UNKNOWN_EDIT = "unknown_edit"
    UNKNOWN_VERSION = "unknown_version"
    NOT_LIVE = "not_live"
    NO_EDITS = "no_edits"  # a version that holds none
    PARTIAL_VERSION = "partial_version"
    NOT_REPLAYABLE = "not_replayable"
    NOT_ADDITIVE = "not_additive"  # so that its edits cannot be taken out of its equations


@dataclass(frozen=True)
class Fault:
    """One fault of one edit; `edit` is the edit's position or id.

    `says` is what the model answers instead of the target, where it was asked.
    """

    edit: int | str | None
    field: str | None
    code: Code
    reason: str
    says: str | None = None

    def __str__(self) -> str:
        where = [] if self.edit is None else [f"edit {self.edit}"]
        where += [] if self.field is None else [self.field]
        return f"{', '.join(where)}: {self.reason}" if where else self.reason

    def to_json(self) -> dict[str, Any]:
        data = {"edit": self.edit, "field": self.field, "code": self.code.value, "reason": self.reason}
        return data if self.says is None else data | {"says": self.says}


class EditRejected(ValueError):
    """An edit that cannot be made. Messages hold no text of an edit, because they may be logged.

    `code`, `reason`, `edit` (position or id), `field` and `says` are those of the first fault; `faults` lists all. The
    exception can be pickled, because workers raise it in other processes.
    """

    def __init__(self, reason: str, *, code: Code, edit: int | str | None = None, field: str | None = None) -> None:
        super().__init__(reason, code, edit, field)
        self.reason, self.code, self.edit, self.field = reason, code, edit, field
        self.faults: tuple[Fault, ...] = (Fault(edit, field, code, reason),)

    @classmethod
    def of(cls, faults: Iterable[Fault]) -> EditRejected:
        """Build one refusal from all faults found, of which there is at least one."""
        first, *others = faults
        rejected = EditRejected(first.reason, code=first.code, edit=first.edit, field=first.field)
        rejected.faults = (first, *others)
        return rejected

    @property
    def says(self) -> str | None:
        """The model's answer instead of the target, where it was asked."""
        return self.faults[0].says

    def __str__(self) -> str:
        return "; ".join(map(str, self.faults))

    def __reduce__(self) -> tuple[Any, ...]:
        return EditRejected.of, (self.faults,)
