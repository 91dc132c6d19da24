"""Edits, and batches of edits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Literal, NamedTuple

from errata.text.answers import Question, says
from errata.text.dates import Period, date_fault, period_of
from errata.text.dialogue import FORMS, Dialogue, Form, Message, Prompt, dialogue_fault, messages_from_json
from errata.text.refusal import Code, EditRejected, Fault
from errata.text.rules import cleaned, is_blank, prompt_key, source_fault, subject_span, text_fault

ORIGIN = ("source", "valid_from", "valid_to", "reason")  # Fields of an edit about where it is from; no editor learns them.


@dataclass(frozen=True)
class Probe:
    """A question that tests an edit's side effects: locality (its answer must stay) or portability (its answer follows).

    `kind` groups portability scores: `two_hop`, `alias`, `reverse` or any other word. `aliases` count as the target, too.
    `answer` is the whole text that training writes in chat, with the target in it; without it, that is the target alone.
    """

    prompt: str
    target: str
    kind: str = ""
    aliases: tuple[str, ...] = ()
    answer: str | None = None

    def wording(self, prompt: Prompt) -> str:
        """Return the text that a model is trained to write after the probe, asked as `prompt`."""
        return self.target if isinstance(prompt, str) or self.answer is None else self.answer

    def to_json(self) -> dict[str, Any]:
        more = (("kind", self.kind), ("aliases", list(self.aliases)), ("answer", self.answer))
        return {"prompt": self.prompt, "target": self.target, **{name: part for name, part in more if part}}

    @classmethod
    def from_json(cls, data: Any, field: str) -> Probe:
        """Read {prompt, target, kind?, aliases?, answer?}. Raises `EditRejected` about `field` for anything else."""
        parts: dict[str, Any] = dict(data) if isinstance(data, Mapping) else {}
        parts |= {"kind": parts.get("kind") or "", "aliases": parts.get("aliases") or [], "answer": parts.get("answer") or ""}
        aliases = parts["aliases"] if isinstance(parts["aliases"], list) else [None]
        texts = (*map(parts.get, ("prompt", "target", "kind", "answer")), *aliases)
        if len(parts) != 5 or not all(isinstance(text, str) for text in texts):
            reason = "must be a list of {prompt, target, kind?, aliases?, answer?} strings"
            raise EditRejected(reason, code=Code.WRONG_TYPE, field=field)
        answer = cleaned(parts["answer"]) or None
        return cls(parts["prompt"], cleaned(parts["target"]), parts["kind"], tuple(map(cleaned, aliases)), answer)


@dataclass(frozen=True)
class Edit:
    """One correction: the edited model answers `prompt` with `target`.

    `form` says how the prompt is asked: as the text of a completion, as the user's question in a dialogue after the messages
    `before`, or both ways. `aliases` are other texts that count as the target. `answer` is the whole text that the model shall
    write in chat, with the target in it; without it, that is the target alone. `rephrasings` are other wordings of the prompt,
    which the edit should generalise to. `locality` and `portability` are probes for training and scoring, asked in the same
    form; no editor needs them to edit. `poster` is the author: the name of the key that posted the edit; `approver`, that of
    the key that approved a proposal. `names_form`: the form was given, so that a service which is posted the edit does not
    choose it.
    The fact holds from the day `valid_from` until the day before `valid_to` (ISO dates); `source` is a URL or a note that says
    where it is from, `reason` why it is corrected.
    """

    prompt: str
    target: str
    subject: str | None = None
    rephrasings: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    id: str | None = None
    poster: str | None = None
    approver: str | None = None
    form: Form = "completion"
    before: tuple[Message, ...] = ()
    aliases: tuple[str, ...] = ()
    answer: str | None = None
    source: str | None = None
    valid_from: str | None = None
    valid_to: str | None = None
    reason: str | None = None
    names_form: bool = field(default=False, compare=False)

    def ask(self, text: str) -> tuple[Prompt, ...]:
        """Return the prompts that ask `text` in the form of this edit: one, or two for the form `both`."""
        asked: dict[Form, tuple[Prompt, ...]] = {"completion": (text,)}
        if self.form != "completion":
            dialogue = Dialogue.of(text, self.before)
            asked |= {"chat": (dialogue,), "both": (text, dialogue)}
        return asked[self.form]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts that the edited model answers with the target."""
        return self.ask(self.prompt)

    @property
    def targets(self) -> tuple[str, ...]:
        """The target and its aliases: an answer is right if it is one of them or, in chat, contains one."""
        return (self.target, *self.aliases)

    def wording(self, prompt: Prompt) -> str:
        """Return the text that the edited model writes after a prompt: the target or, in chat, the whole answer."""
        return self.target if isinstance(prompt, str) or self.answer is None else self.answer

    def question(self, prompt: Prompt) -> Question:
        """Return a prompt as a question about this edit."""
        return Question(prompt, self.wording(prompt), self.targets)

    def first_wrong(self, texts: Sequence[str]) -> str | None:
        """Return the first of the answers to `prompts` that is not right; None if all are."""
        asked = zip(self.prompts, texts, strict=True)
        return next((text for prompt, text in asked if not self.question(prompt).is_answered_by(text)), None)

    @property
    def keys(self) -> frozenset[Any]:
        """Keys of the prompts; edits that share one contradict or repeat each other."""
        return frozenset(map(prompt_key, self.prompts))

    @property
    def period(self) -> Period:
        """The time in which the fact holds, without a bound that is not given. Raises `ValueError` for what is no day."""
        return period_of(self.valid_from, self.valid_to)

    def faults(self, edit: int | str | None = None) -> Iterator[Fault]:
        """Find every fault that shows without a tokenizer; `edit` is how the faults name this edit."""
        for name in ("prompt", "target"):
            if is_blank(getattr(self, name)):
                yield Fault(edit, name, Code.EMPTY_FIELD, "is empty; give the text")
        yield from self._text_faults(edit)
        if self.before and (fault := dialogue_fault((*self.before, Message("user", self.prompt)))) is not None:
            yield Fault(edit, "messages", Code.INVALID_VALUE, fault)
        if self.before and self.form != "chat":
            yield Fault(edit, "form", Code.INVALID_VALUE, f"messages are asked in chat: leave out the form {self.form}")
        if self.subject is not None and (is_blank(self.subject) or subject_span(self.prompt, self.subject) is None):
            reason = "does not occur in the prompt, letter by letter: give it as it is there, or leave it out"
            yield Fault(edit, "subject", Code.SUBJECT_NOT_IN_PROMPT, reason)
        for name in ("rephrasings", "aliases"):
            if any(map(is_blank, getattr(self, name))):
                yield Fault(edit, name, Code.EMPTY_FIELD, "one of them is empty; leave it out")
        if self.answer is not None and (fault := self._answer_fault()) is not None:
            yield Fault(edit, "answer", Code.INVALID_VALUE, fault)
        for name in ("locality", "portability"):
            if any(any(map(is_blank, (probe.prompt, probe.target, *probe.aliases))) for probe in getattr(self, name)):
                yield Fault(edit, name, Code.EMPTY_FIELD, "one of them has an empty prompt, target or alias; leave it out")
        yield from self._origin_faults(edit)

    def _origin_faults(self, edit: int | str | None) -> Iterator[Fault]:
        """Find faults of the fact's time, its source and the reason of the correction."""
        for name in ("source", "reason"):
            if (text := getattr(self, name)) is not None and is_blank(text):
                yield Fault(edit, name, Code.EMPTY_FIELD, "is empty; leave it out")
        if self.source is not None and (fault := source_fault(self.source)) is not None:
            yield Fault(edit, "source", Code.INVALID_URL, fault)
        days = [(name, day) for name in ("valid_from", "valid_to") if (day := getattr(self, name)) is not None]
        wrong = [Fault(edit, name, Code.INVALID_DATE, fault) for name, day in days if (fault := date_fault(day)) is not None]
        yield from wrong
        if not wrong and self.period.is_empty:
            reason = (
                "is not later than valid_from: give the first day on which the fact does not hold any more, or leave it out"
            )
            yield Fault(edit, "valid_to", Code.INVALID_PERIOD, reason)

    def _text_faults(self, edit: int | str | None) -> Iterator[Fault]:
        """Find texts that the rules of text refuse, or that are not as they are learnt; `faults` has those without a letter."""
        texts = [(name, getattr(self, name) or "") for name in ("target", "subject", "answer", "source", "reason")]
        texts += [("aliases", alias) for alias in self.aliases]
        for name, text in texts:
            if not is_blank(text) and cleaned(text) != text:
                reason = "is not as it is learnt: give it without blanks around it, composed (`errata.text.rules.cleaned`)"
                yield Fault(edit, name, Code.INVALID_VALUE, reason)
        texts += [("prompt", self.prompt), *(("messages", message.content) for message in self.before)]
        texts += [("rephrasings", text) for text in self.rephrasings]
        for name in ("locality", "portability"):
            texts += [(name, text) for probe in getattr(self, name) for text in (probe.prompt, probe.target, *probe.aliases)]
        for name, text in texts:
            if (name == "messages" or not is_blank(text)) and (fault := text_fault(text)) is not None:
                yield Fault(edit, name, Code.NOT_TEXT, fault)

    def _answer_fault(self) -> str | None:
        if self.form == "completion":
            return "is written in chat alone, and this prompt is completed: leave it out, or ask in chat (form)"
        if not any(says(self.answer or "", text) for text in self.targets):
            return "does not contain the target or one of its aliases"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the edit as JSON: `prompt` is the question of a dialogue; `messages` are there if others come before it."""
        data: dict[str, Any] = {"prompt": self.prompt, "target": self.target}
        for name in ("id", "subject", "poster", "approver", "answer", *ORIGIN):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        for name in ("aliases", "rephrasings"):
            if getattr(self, name):
                data[name] = list(getattr(self, name))
        for name in ("locality", "portability"):
            if getattr(self, name):
                data[name] = [probe.to_json() for probe in getattr(self, name)]
        if self.form != "completion" or self.names_form:
            data["form"] = self.form
        if self.before:
            data["messages"] = [message.to_json() for message in (*self.before, Message("user", self.prompt))]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Edit:
        """Read an edit. Raises `EditRejected` for a field that is missing, unknown or of the wrong type.

        The prompt is `prompt`, or `question` for one that is asked in chat, or `messages` that end with the user's question.
        Targets, aliases, answers and subjects are cleaned as `errata.text.rules` says.
        """
        if unknown := data.keys() - _FIELDS:
            raise EditRejected("is not a field of an edit", code=Code.UNKNOWN_FIELD, field=", ".join(sorted(unknown)))
        asked = _asked_of(data)
        if not isinstance(data.get("target"), str):
            code = Code.WRONG_TYPE if "target" in data else Code.MISSING_FIELD
            raise EditRejected("must be given as a string", code=code, field="target")
        for name in ("subject", "id", "poster", "approver", "answer", *ORIGIN):
            if not isinstance(data.get(name), str | None):
                raise EditRejected("must be a string, or left out", code=Code.WRONG_TYPE, field=name)
        for name in ("rephrasings", "aliases", "locality", "portability"):
            if not isinstance(data.get(name), list | tuple | None):
                raise EditRejected("must be a list, or left out", code=Code.WRONG_TYPE, field=name)
        for name in ("rephrasings", "aliases"):
            if not all(isinstance(text, str) for text in data.get(name) or ()):
                raise EditRejected("must be strings", code=Code.WRONG_TYPE, field=name)
        given = [name for name in ("locality", "portability") if data.get(name)]
        probes: dict[str, Any] = {name: tuple(Probe.from_json(probe, name) for probe in data[name]) for name in given}
        origin: dict[str, Any] = {name: cleaned(data[name]) for name in ORIGIN if data.get(name) is not None}
        return cls(
            target=cleaned(data["target"]),
            subject=None if data.get("subject") is None else cleaned(data["subject"]),
            aliases=tuple(cleaned(text) for text in data.get("aliases") or ()),
            answer=None if data.get("answer") is None else cleaned(data["answer"]),
            rephrasings=tuple(data.get("rephrasings") or ()),
            id=data.get("id"),
            poster=data.get("poster"),
            approver=data.get("approver"),
            **asked,
            **probes,
            **origin,
        )


def _asked_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Read prompt, form and earlier messages of an edit."""
    form = data.get("form")
    if form is not None and form not in FORMS:
        raise EditRejected(f"is one of {', '.join(FORMS)}, or left out", code=Code.INVALID_VALUE, field="form")
    before: tuple[Message, ...] = ()
    prompt, question = data.get("prompt"), data.get("question")
    if data.get("messages"):
        try:
            messages = messages_from_json(data["messages"])
        except ValueError as fault:
            raise EditRejected(str(fault), code=Code.WRONG_TYPE, field="messages") from None
        if (fault_found := dialogue_fault(messages)) is not None:
            raise EditRejected(fault_found, code=Code.INVALID_VALUE, field="messages")
        said = messages[-1].content
        if any(text is not None and text != said for text in (prompt, question)):
            why = "the last message is another text: give messages, or prompt, or question"
            raise EditRejected(why, code=Code.INVALID_VALUE, field="prompt" if question is None else "question")
        prompt, before, form = said, messages[:-1], form or "chat"
    elif question is not None:
        if prompt is not None and prompt != question:
            raise EditRejected("give a prompt or a question, not both", code=Code.INVALID_VALUE, field="question")
        prompt, form = question, form or "chat"
        if form == "completion":
            raise EditRejected("a question is asked in chat: post a prompt", code=Code.INVALID_VALUE, field="form")
    if not isinstance(prompt, str):
        is_given = any(data.get(name) is not None for name in ("prompt", "question"))
        code = Code.WRONG_TYPE if is_given else Code.MISSING_FIELD
        raise EditRejected("must be given as a string", code=code, field="question" if question is not None else "prompt")
    return {"prompt": prompt, "form": form or "completion", "before": before, "names_form": data.get("form") is not None}


_FIELDS = frozenset(each.name for each in fields(Edit)) - {"before", "names_form"} | {"question", "messages"}


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
    def rows(self) -> list[Row]:
        """The requests of all edits, in their order."""
        return [Row(index, prompt, edit.wording(prompt)) for index, edit in enumerate(self.edits) for prompt in edit.prompts]

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of the rows."""
        return [row.prompt for row in self.rows]

    @property
    def targets(self) -> list[str]:
        """The answers of the rows."""
        return [row.answer for row in self.rows]


class Row(NamedTuple):
    """A request that an edit of a batch answers: the edit's position, the prompt, and the answer."""

    edit: int
    prompt: Prompt
    answer: str


def batches_of(edits: Iterable[Edit], size: int) -> Iterator[EditBatch]:
    """Consecutive batches of `size` edits; the last may be smaller."""
    if size < 1:
        raise ValueError(f"a batch holds at least one edit, not {size}")
    stream = iter(edits)
    while part := tuple(islice(stream, size)):
        yield EditBatch(part)


EditState = Literal["queued", "applying", "applied", "rejected", "superseded", "reverted"]
SETTLED = frozenset({"applied", "rejected", "superseded", "reverted"})
