"""Bank of a version: the records of its memory, one for each fact.

N rows of all records, I in-features of the module that is read.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from errata.edit_memory.encoder import NUM_DIMENSIONS
from errata.edit_memory.question_index import IndexedRecord, IndexedWording, QuestionIndex
from errata.edit_memory.row_buffer import RowBuffer
from errata.edit_memory.subjects import plain_words
from errata.text.dates import Period, period_of
from errata.text.dialogue import Dialogue, Message, Prompt

# state: tokens are forced where the input of a module is near a key; text: a record's text is put into a prompt that is near;
# answer: a record's answer is said after a prompt that is near; datastore: tokens that followed near states are mixed into the
# next token's distribution; rows: the tokens of a subject are read with other embeddings; prefix: vectors precede a prompt;
# experts: low-rank branches, which all records share, are mixed into matrices where the input of a module has a record's code.
Kind = Literal["state", "text", "answer", "datastore", "rows", "prefix", "experts"]
KINDS: tuple[Kind, ...] = get_args(Kind)
AT_MATRIX: frozenset[Kind] = frozenset({"state", "experts"})  # At an editable matrix, whose input is compared.
READ_BEFORE: frozenset[Kind] = frozenset({"text", "answer"})  # Before the model reads the prompt, and not inside it.
EMBEDDED: frozenset[Kind] = frozenset({"rows", "prefix"})  # Before the model, too, which reads a prompt with other embeddings.
PER_TOKEN: frozenset[Kind] = AT_MATRIX | {"datastore"}  # Inside the model, at each token; other kinds once a prompt.
IN_LAYERS: frozenset[Kind] = frozenset({"experts"})  # What they do reaches later layers, and so a prompt's keys and values.
BY_QUESTION: frozenset[Kind] = READ_BEFORE | {"prefix"}  # By the vector that the sentence encoder gives to a question.
SAID: frozenset[Kind] = frozenset({"answer"})  # What is said is the record's own answer: it is known without the model.
_PAST = "\n"  # Between a fact, which is JSON in one line, and the time of a past record.
# The tensors of a record by kind, with the dimensions of each; the first dimension counts the record's rows.
ROWS: Mapping[Kind, Mapping[str, int]] = {
    "state": {"key": 2, "token": 1, "after": 1, "threshold": 1},
    "text": {"key": 2, "threshold": 1},
    "answer": {"key": 2, "threshold": 1},
    "datastore": {"key": 2, "token": 1, "threshold": 1, "temperature": 1, "share": 1, "nearest": 1},
    "rows": {"id": 1, "embedding": 2, "begins": 1, "number": 1},
    "prefix": {"key": 2, "embedding": 2},
    "experts": {"code": 2, "radius": 1},
}


@dataclass(frozen=True, eq=False)
class Record:
    """Record of one fact: tensors by name, each with the record's rows, and the correction as a text.

    A later record of the same `fact` replaces this one. `subject` is what the question is about, if that is known, `edit` the
    id of the edit, if it has one, and `answer` what a record of the kind `answer` says. The correction holds from the day
    `valid_from` until the day before `valid_to`, ISO dates, if they are known; `edit_memory/past.py` has past records.
    `rephrasings` are other wordings of the question; a record that is read before the model has a key for each, after that of
    the question.
    """

    fact: str
    text: str
    rows: Mapping[str, Tensor]
    subject: str = ""
    edit: str = ""
    answer: str = ""
    valid_from: str = ""
    valid_to: str = ""
    rephrasings: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def in_chat(self) -> bool:
        """The question is asked in a dialogue."""
        return not isinstance(_read(self.fact), str)

    @property
    def is_past(self) -> bool:
        """The record was replaced, and answers only questions about its time."""
        return _PAST in self.fact

    @property
    def period(self) -> Period:
        """The time in which the correction holds."""
        return period_of(self.valid_from, self.valid_to)

    @cached_property
    def question(self) -> str:
        return question_of_fact(self.fact)

    @cached_property
    def wordings(self) -> tuple[str, ...]:
        """The question and its other wordings, in the order of the keys."""
        return (self.question, *self.rephrasings)

    @property
    def prompt(self) -> Prompt:
        """The prompt of the record's fact, with single blanks."""
        read = _read(self.fact)
        return read if isinstance(read, str) else Dialogue(tuple(Message(role, content) for role, content in read))

    @property
    def earlier_messages(self) -> list[str]:
        """The messages before the question, without those of the system."""
        read = _read(self.fact)
        return [] if isinstance(read, str) else [content for role, content in read[:-1] if role != "system"]

    def fault(self, kind: Kind) -> str | None:
        """Say why this is no record of its kind, as one of a damaged file may be; None if it is one."""
        wanted = ROWS[kind]
        if {name: tensor.dim() for name, tensor in self.rows.items()} != wanted:
            return f"the record of {self.fact[:60]} has other tensors than {', '.join(wanted)}"
        if len({len(tensor) for tensor in self.rows.values()}) != 1:
            return f"the tensors of the record of {self.fact[:60]} do not fit each other"
        if kind in BY_QUESTION and self.rows["key"].shape != (1 + len(self.rephrasings), NUM_DIMENSIONS):
            return f"the record of {self.fact[:60]} has other keys than one vector of {NUM_DIMENSIONS} for each wording"
        if kind == "rows" and (not self.num_rows or not bool(self.rows["begins"][0])):
            return f"the record of {self.fact[:60]} has tokens before its first pattern, or none"
        if kind == "answer" and not self.answer:
            return f"the record of {self.fact[:60]} has no answer"
        if kind == "experts" and self.rows["code"].dtype != torch.uint8:
            return f"the record of {self.fact[:60]} has a code that is no bytes"
        return None


def question_of_fact(fact: str) -> str:
    """Return the question of a fact as `fact_of` writes it: a text, or the last message of a dialogue."""
    read = _read(fact)
    return read if isinstance(read, str) else str(read[-1][1])


def past_fact(fact: str, begin: str, end: str) -> str:
    """Return the name of a fact's past record, of which there is one for each time."""
    return f"{fact}{_PAST}{begin}..{end}"


def _read(fact: str) -> Any:
    return json.loads(fact.partition(_PAST)[0])


@dataclass(frozen=True, eq=False)
class Bank:
    """The records that a version holds, by fact.

    `site` names the module whose input they are compared with or, for the kinds that are read before the model, the encoder.
    `shared` are tensors that all records need, by name; without records there are none.
    """

    kind: Kind
    site: str
    records: Mapping[str, Record] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())

    def changed(self, records: Iterable[Record], dropped: Iterable[str], shared: Mapping[str, Tensor] | None = None) -> Bank:
        """Return the bank without the facts `dropped`, and with `records` added, or in the place of those of the same facts.

        `shared` takes the place of the tensors that all records need, unless there are none in it.
        """
        held, new = dict(self.records), {record.fact: record for record in records}
        gone = [held[fact] for fact in dict.fromkeys((*dropped, *new)) if fact in held]
        for record in gone:
            del held[record.fact]
        held |= new  # At the end, also in the place of others: of two that fit alike, the later one counts.
        bank = Bank(self.kind, self.site, held, (shared or self.shared) if held else {})
        if "index" in vars(self):
            vars(bank)["index"] = self.index.changed(map(_entry, gone), map(_entry, new.values()))
        if not gone and new:  # Otherwise the rows have another order.
            parts = [record.rows for record in new.values()]
            bank._buffers.update({device: buffer.followed_by(parts) for device, buffer in self._buffers.items()})
        return bank

    @property
    def rows(self) -> dict[str, Tensor]:
        """The rows of all records, in order, [N, ...] by name, on the device of the first one."""
        first = next(iter(self))
        return self.on(next(iter(first.rows.values())).device)

    @cached_property
    def index(self) -> QuestionIndex:
        """The index of the records' questions, for the kinds that are read before the model."""
        return QuestionIndex().changed((), map(_entry, self))

    def record_of_row(self, row: int) -> Record:
        """Return the record that has a row, counted over all records."""
        return self._records[bisect_right(self._ends, row)]

    @cached_property
    def _records(self) -> list[Record]:
        return list(self)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(record.num_rows for record in self))

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the rows on a device; they are joined and moved there once."""
        if device not in self._buffers:
            self._buffers[device] = RowBuffer.of(ROWS[self.kind], [record.rows for record in self], device)
        return self._buffers[device].rows

    @cached_property
    def _buffers(self) -> dict[torch.device, RowBuffer]:
        return {}


def _entry(record: Record) -> IndexedRecord:
    wordings = tuple(IndexedWording(record.fact, text) for text in record.wordings)
    return IndexedRecord(wordings, plain_words(record.subject), record.rows["key"], record.rows["threshold"])
