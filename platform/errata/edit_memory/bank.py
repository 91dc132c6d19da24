"""Bank of a version: the records of its memory, one for each fact.

N rows of all records, I in-features of the module that is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from errata.edit_memory.lexical import LexicalIndex

# state: tokens are forced where the input of a module is near a key; text: a record's text is put into a prompt that is near.
# datastore: tokens that followed near states are mixed into the next token's distribution.
# rows: the tokens of a subject are read with other embeddings.
Kind = Literal["state", "text", "datastore", "rows"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# The tensors of a record by kind, with the dimensions of each; the first dimension counts the record's rows.
ROWS: Mapping[Kind, Mapping[str, int]] = {
    "state": {"key": 2, "token": 1, "after": 1, "threshold": 1},
    "text": {"key": 2, "threshold": 1, "lexical_threshold": 1},
    "datastore": {"key": 2, "token": 1, "threshold": 1, "temperature": 1, "share": 1, "nearest": 1},
    "rows": {"id": 1, "embedding": 2, "begins": 1, "number": 1},
}


@dataclass(frozen=True, eq=False)
class Record:
    """Record of one fact: tensors by name, each with the record's rows, and a text for people.

    A later record of the same `fact` replaces this one.
    """

    fact: str
    text: str
    rows: Mapping[str, Tensor]

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.rows.values())))

    def fault(self, kind: Kind) -> str | None:
        """Say why this is no record of its kind, as one of a damaged file may be; None if it is one."""
        wanted = ROWS[kind]
        if {name: tensor.dim() for name, tensor in self.rows.items()} != wanted:
            return f"the record of {self.fact[:60]} has other tensors than {', '.join(wanted)}"
        if len({len(tensor) for tensor in self.rows.values()}) != 1:
            return f"the tensors of the record of {self.fact[:60]} do not fit each other"
        return None


def question_of_fact(fact: str) -> str:
    """Return the question of a fact as `fact_of` writes it: a text, or the last message of a dialogue."""
    read = json.loads(fact)
    return read if isinstance(read, str) else str(read[-1][1])


@dataclass(frozen=True, eq=False)
class Bank:
    """The records that a version holds, by fact. `site` names the module whose input they are compared with."""

    kind: Kind
    site: str
    records: Mapping[str, Record] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())

    def changed(self, records: Iterable[Record], dropped: Iterable[str]) -> Bank:
        """Return the bank without the facts `dropped`, and with `records` added, or in the place of those of the same facts."""
        gone = frozenset(dropped)
        held = {fact: record for fact, record in self.records.items() if fact not in gone}
        return Bank(self.kind, self.site, held | {record.fact: record for record in records})

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """The rows of all records, in order, [N, ...] by name."""
        return {name: torch.cat([record.rows[name] for record in self]) for name in ROWS[self.kind]}

    @cached_property
    def index(self) -> LexicalIndex:
        """The lexical index of the records' questions, in order."""
        return LexicalIndex([question_of_fact(record.fact) for record in self])

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the rows on a device; they are moved there once."""
        if device not in self._moved:
            self._moved[device] = {name: tensor.to(device) for name, tensor in self.rows.items()}
        return self._moved[device]

    @cached_property
    def _moved(self) -> dict[torch.device, dict[str, Tensor]]:
        return {}
