"""Edits, batches of edits, and the reasons for which one is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal


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
    NOT_TEXT = "not_text"  # bytes that are not UTF-8, or a lone surrogate
    TOO_LONG = "too_long"
    SUBJECT_NOT_IN_PROMPT = "subject_not_in_prompt"
    EMPTY_BATCH = "empty_batch"
    BATCH_SIZE = "batch_size"
    CONTRADICTED = "contradicted"  # a later edit of the batch gives the prompt another target
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
    # a revert
    NOTHING_CHOSEN = "nothing_chosen"
    UNKNOWN_EDIT = "unknown_edit"
    UNKNOWN_VERSION = "unknown_version"
    NOT_LIVE = "not_live"
    NO_EDITS = "no_edits"  # a version that holds none
    PARTIAL_VERSION = "partial_version"
    NOT_REPLAYABLE = "not_replayable"


@dataclass(frozen=True)
class Fault:
    """One fault of one edit; `edit` is the edit's position or id."""

    edit: int | str | None
    field: str | None
    code: Code
    reason: str

    def __str__(self) -> str:
        where = [] if self.edit is None else [f"edit {self.edit}"]
        where += [] if self.field is None else [self.field]
        return f"{', '.join(where)}: {self.reason}" if where else self.reason

    def to_json(self) -> dict[str, Any]:
        return {"edit": self.edit, "field": self.field, "code": self.code.value, "reason": self.reason}


class EditRejected(ValueError):
    """An edit that cannot be made.

    `code`, `reason`, `edit` (position or id) and `field` are those of the first fault; `faults` lists all. The exception can
    be pickled, because workers raise it in other processes.
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

    def __str__(self) -> str:
        return "; ".join(map(str, self.faults))

    def __reduce__(self) -> tuple[Any, ...]:
        return EditRejected.of, (self.faults,)


@dataclass(frozen=True)
class Probe:
    """A question that tests an edit's side effects: locality (its answer must stay) or portability (its answer follows).

    `kind` groups portability scores: `two_hop`, `alias`, `reverse` or any other word.
    """

    prompt: str
    target: str
    kind: str = ""

    def to_json(self) -> dict[str, str]:
        return {"prompt": self.prompt, "target": self.target} | ({"kind": self.kind} if self.kind else {})

    @classmethod
    def from_json(cls, data: Any, field: str) -> Probe:
        """Read {prompt, target, kind?} of strings. Raises `EditRejected` about `field` for anything else."""
        parts: dict[str, Any] = {**data, "kind": data.get("kind") or ""} if isinstance(data, Mapping) else {}
        if set(parts) != {"prompt", "target", "kind"} or not all(isinstance(part, str) for part in parts.values()):
            raise EditRejected(
                "must be a list of {prompt, target, kind?} with strings in them", code=Code.WRONG_TYPE, field=field
            )
        return cls(**parts)


@dataclass(frozen=True)
class Edit:
    """One correction: the edited model answers `prompt` with `target`.

    `rephrasings` are other wordings of the prompt, which the edit should generalise to. `locality` and `portability` are probes
    for training and scoring; no editor needs them to edit. `poster` is the author: the name of the key that posted the edit.
    """

    prompt: str
    target: str
    subject: str | None = None
    rephrasings: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    id: str | None = None
    poster: str | None = None

    def faults(self, edit: int | str | None = None) -> Iterator[Fault]:
        """Find every fault that shows without a tokenizer; `edit` is how the faults name this edit."""
        for name in ("prompt", "target"):
            if not getattr(self, name).strip():
                yield Fault(edit, name, Code.EMPTY_FIELD, "is empty; give the text")
        if self.subject is not None and (not self.subject.strip() or self.subject not in self.prompt):
            reason = f"{self.subject!r} does not occur in the prompt {self.prompt!r}"
            yield Fault(edit, "subject", Code.SUBJECT_NOT_IN_PROMPT, reason)
        if any(not rephrasing.strip() for rephrasing in self.rephrasings):
            yield Fault(edit, "rephrasings", Code.EMPTY_FIELD, "one of them is empty; leave it out")
        for name in ("locality", "portability"):
            if any(not (probe.prompt.strip() and probe.target.strip()) for probe in getattr(self, name)):
                yield Fault(edit, name, Code.EMPTY_FIELD, "one of them has an empty prompt or target; leave it out")

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"prompt": self.prompt, "target": self.target}
        if self.id is not None:
            data["id"] = self.id
        for name in ("subject", "poster"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        if self.rephrasings:
            data["rephrasings"] = list(self.rephrasings)
        for name in ("locality", "portability"):
            if getattr(self, name):
                data[name] = [probe.to_json() for probe in getattr(self, name)]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Edit:
        """Read an edit. Raises `EditRejected` for a field that is missing, unknown or of the wrong type."""
        if unknown := data.keys() - _FIELDS:
            raise EditRejected("is not a field of an edit", code=Code.UNKNOWN_FIELD, field=", ".join(sorted(unknown)))
        for name in ("prompt", "target"):
            if not isinstance(data.get(name), str):
                code = Code.WRONG_TYPE if name in data else Code.MISSING_FIELD
                raise EditRejected("must be given as a string", code=code, field=name)
        for name in ("subject", "id", "poster"):
            if not isinstance(data.get(name), str | None):
                raise EditRejected("must be a string, or left out", code=Code.WRONG_TYPE, field=name)
        for name in ("rephrasings", "locality", "portability"):
            if not isinstance(data.get(name), list | tuple | None):
                raise EditRejected("must be a list, or left out", code=Code.WRONG_TYPE, field=name)
        if not all(isinstance(rephrasing, str) for rephrasing in data.get("rephrasings") or ()):
            raise EditRejected("must be strings", code=Code.WRONG_TYPE, field="rephrasings")
        given = [name for name in ("locality", "portability") if data.get(name)]
        probes = {name: tuple(Probe.from_json(probe, name) for probe in data[name]) for name in given}
        return cls(
            prompt=data["prompt"],
            target=data["target"],
            subject=data.get("subject"),
            rephrasings=tuple(data.get("rephrasings") or ()),
            id=data.get("id"),
            poster=data.get("poster"),
            **probes,
        )


_FIELDS = frozenset(each.name for each in fields(Edit))


@dataclass(frozen=True)
class EditBatch:
    """Edits that are made in one call of an editor, in the order in which they were posted."""

    edits: tuple[Edit, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    @property
    def prompts(self) -> list[str]:
        return [edit.prompt for edit in self.edits]

    @property
    def targets(self) -> list[str]:
        return [edit.target for edit in self.edits]


def batches_of(edits: Iterable[Edit], size: int) -> Iterator[EditBatch]:
    """Consecutive batches of `size` edits; the last may be smaller."""
    if size < 1:
        raise ValueError(f"a batch holds at least one edit, not {size}")
    pending: list[Edit] = []
    for edit in edits:
        pending.append(edit)
        if len(pending) == size:
            yield EditBatch(tuple(pending))
            pending = []
    if pending:
        yield EditBatch(tuple(pending))


def check_edits(edits: Sequence[Edit], tokenizer: Any = None, max_tokens: int | None = None) -> None:
    """Raise `EditRejected` with every fault of every edit.

    With a tokenizer, a prompt with its target must also fit into `max_tokens` tokens, the model's context.
    """
    if not edits:
        raise EditRejected("an empty batch; give at least one edit", code=Code.EMPTY_BATCH, field="edits")
    faults = [fault for index, edit in enumerate(edits) for fault in edit.faults(index)]
    if tokenizer is not None and max_tokens is not None:
        faults += [fault for index, edit in enumerate(edits) for fault in _too_long(edit, index, tokenizer, max_tokens)]
    if faults:
        raise EditRejected.of(faults)


def _too_long(edit: Edit, index: int, tokenizer: Any, max_tokens: int) -> Iterator[Fault]:
    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    def fault(field: str, reason: str) -> Fault:
        return Fault(index, field, Code.TOO_LONG, reason)

    num_prompt, num_all = count(edit.prompt), count(f"{edit.prompt} {edit.target}")
    if num_prompt >= max_tokens:
        yield fault("prompt", f"has {num_prompt} tokens; the model's context holds {max_tokens}")
    elif num_all + 1 > max_tokens:  # one more for the end-of-text token that closes the answer
        yield fault("target", f"makes {num_all + 1} tokens with its prompt; the model's context holds {max_tokens}")
    for rephrasing in edit.rephrasings:
        if count(f"{rephrasing} {edit.target}") + 1 > max_tokens:
            reason = f"{rephrasing[:40]!r} with the target is longer than the model's context of {max_tokens}"
            yield fault("rephrasings", reason)


EditState = Literal["queued", "applying", "applied", "rejected", "superseded", "reverted"]
SETTLED = frozenset({"applied", "rejected", "superseded", "reverted"})
