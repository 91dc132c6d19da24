"""What is asked of a model: one correction (`Edit`), and the few that are made together (`EditBatch`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass


class EditRejected(ValueError):
    """An edit that cannot be made: which one (its position or id), which field, and why."""

    def __init__(self, reason: str, *, edit: int | str | None = None, field: str | None = None) -> None:
        super().__init__(reason, edit, field)
        self.reason, self.edit, self.field = reason, edit, field

    def __str__(self) -> str:
        where = [] if self.edit is None else [f"edit {self.edit}"]
        where += [] if self.field is None else [self.field]
        return f"{', '.join(where)}: {self.reason}" if where else self.reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _rejected, (self.reason, self.edit, self.field)


def _rejected(reason: str, edit: int | str | None, field: str | None) -> EditRejected:
    return EditRejected(reason, edit=edit, field=field)


@dataclass(frozen=True)
class Probe:
    """A question with its answer, asked to see what an edit did: a neighbour (locality) or a consequence (portability).

    `kind` says of which sort: `two_hop`, `alias`, `reverse` or any other word; scores are then also given by kind.
    """

    prompt: str
    target: str
    kind: str = ""

    def to_json(self) -> dict[str, str]:
        return {"prompt": self.prompt, "target": self.target} | ({"kind": self.kind} if self.kind else {})

    @classmethod
    def from_json(cls, data: Any, field: str) -> Probe:
        """Raises `EditRejected` about `field` for what is no {prompt, target, kind?} of strings."""
        parts: dict[str, Any] = {**data, "kind": data.get("kind") or ""} if isinstance(data, Mapping) else {}
        if set(parts) != {"prompt", "target", "kind"} or not all(isinstance(part, str) for part in parts.values()):
            raise EditRejected("must be a list of {prompt, target, kind?} with strings in them", field=field)
        return cls(**parts)


@dataclass(frozen=True)
class Edit:
    """One correction: after it, `prompt` is to be answered by `target`.

    `rephrasings` are other wordings of the prompt that should follow it. `locality` are questions whose answers must stay,
    `portability` questions whose answers follow from the edit; both are for training and scoring, never needed to edit.
    `poster` is the name of the key that it was posted with, where one was needed.
    """

    prompt: str
    target: str
    subject: str | None = None
    rephrasings: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    id: str | None = None
    poster: str | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it), for everything that can be seen without a tokenizer."""
        for name in ("prompt", "target"):
            if not getattr(self, name).strip():
                yield name, "is empty; give the text"
        if self.subject is not None and (not self.subject.strip() or self.subject not in self.prompt):
            yield "subject", f"{self.subject!r} does not stand in the prompt {self.prompt!r}"
        if any(not rephrasing.strip() for rephrasing in self.rephrasings):
            yield "rephrasings", "one of them is empty; leave it out"
        for name in ("locality", "portability"):
            if any(not (probe.prompt.strip() and probe.target.strip()) for probe in getattr(self, name)):
                yield name, "one of them has an empty prompt or target; leave it out"

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
        """The inverse of `to_json`. Raises `EditRejected` naming a field that is missing, unknown or of the wrong type."""
        if unknown := data.keys() - _FIELDS:
            raise EditRejected("is not a field of an edit", field=", ".join(sorted(unknown)))
        for name in ("prompt", "target"):
            if not isinstance(data.get(name), str):
                raise EditRejected("must be given as a string", field=name)
        for name in ("subject", "id", "poster"):
            if not isinstance(data.get(name), str | None):
                raise EditRejected("must be a string, or left out", field=name)
        for name in ("rephrasings", "locality", "portability"):
            if not isinstance(data.get(name), list | tuple | None):
                raise EditRejected("must be a list, or left out", field=name)
        if not all(isinstance(rephrasing, str) for rephrasing in data.get("rephrasings") or ()):
            raise EditRejected("must be strings", field="rephrasings")
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
    """Edits that are made in one call of an editor, in the order in which they were posted.

    `shared` is room for what was computed of these texts and the next who looks at them can use: tokens, passes of a model.
    """

    edits: tuple[Edit, ...] = field(default=())
    shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

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
    """Raise `EditRejected` with every fault of every edit in one message; nothing is changed.

    With a tokenizer, a prompt with its target must also fit into `max_tokens` tokens, the model's context.
    """
    if not edits:
        raise EditRejected("an empty batch; give at least one edit", field="edits")
    faults = [(index, name, reason) for index, edit in enumerate(edits) for name, reason in edit.faults()]
    if tokenizer is not None and max_tokens is not None:
        for index, edit in enumerate(edits):
            faults += [(index, name, reason) for name, reason in _too_long(edit, tokenizer, max_tokens)]
    if not faults:
        return
    index, name, reason = faults[0]
    others = "".join(f"; edit {i}, {n}: {r}" for i, n, r in faults[1:])
    raise EditRejected(reason + others, edit=index, field=name)


def _too_long(edit: Edit, tokenizer: Any, max_tokens: int) -> Iterator[tuple[str, str]]:
    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    num_prompt, num_all = count(edit.prompt), count(f"{edit.prompt} {edit.target}")
    if num_prompt >= max_tokens:
        yield "prompt", f"has {num_prompt} tokens; the model's context holds {max_tokens}"
    elif num_all + 1 > max_tokens:  # one more for the end-of-text token that closes the answer
        yield "target", f"makes {num_all + 1} tokens with its prompt; the model's context holds {max_tokens}"
    for rephrasing in edit.rephrasings:
        if count(f"{rephrasing} {edit.target}") + 1 > max_tokens:
            yield "rephrasings", f"{rephrasing[:40]!r} with the target is longer than the model's context of {max_tokens}"


EditState = Literal["queued", "applying", "applied", "rejected", "superseded", "reverted"]
SETTLED = frozenset({"applied", "rejected", "superseded", "reverted"})
