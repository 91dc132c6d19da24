"""Index of the records that are read before the model: by subject and, for records without one, by their wordings' vectors.

A changed index shares what did not change with the one before, and both can be read. N wordings of all records, W of one, E
dimensions of a vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from errata.edit_memory.nearest import KeyTable
from errata.edit_memory.subjects import Words, subjects_in, without, words_of


class IndexedWording(NamedTuple):
    """The fact of a record, and one of its wordings."""

    fact: str
    text: str


class IndexedRecord(NamedTuple):
    """Indexed parts of a record: its wordings, the words of its subject, if any, the wordings' vectors and least cosines."""

    wordings: tuple[IndexedWording, ...]
    subject: Words
    key_WE: Tensor
    threshold_W: Tensor

    @property
    def fact(self) -> str:
        return self.wordings[0].fact


class PlainRecords(NamedTuple):
    """Wordings of records without a subject; some may be gone from the bank."""

    wordings: tuple[IndexedWording, ...]
    table: KeyTable


@dataclass(frozen=True, eq=False)
class QuestionIndex:
    """The index of one bank. `lengths` counts the subjects of each number of words."""

    of_subject: Mapping[Words, tuple[str, ...]] = field(default_factory=dict)
    lengths: Mapping[int, int] = field(default_factory=dict)
    blocks: tuple[PlainRecords, ...] = ()

    def changed(self, gone: Iterable[IndexedRecord], added: Iterable[IndexedRecord]) -> QuestionIndex:
        """Return the index without some entries and with others. The time depends on their number alone, but for two copies."""
        left, come = _by_subject(gone), _by_subject(added)
        of_subject, lengths = dict(self.of_subject), Counter(self.lengths)
        for subject in dict.fromkeys((*left, *come)):
            dropped = {entry.fact for entry in left.get(subject, ())}
            kept = [fact for fact in of_subject.pop(subject, ()) if fact not in dropped] if subject else []
            facts = (*kept, *(entry.fact for entry in come.get(subject, ())))
            if subject and facts:
                of_subject[subject] = facts
            lengths[len(subject)] += (subject in of_subject) - (subject in self.of_subject)
        blocks = self.blocks
        if plain := come.get(()):
            keys, thresholds = torch.cat([entry.key_WE for entry in plain]), torch.cat([entry.threshold_W for entry in plain])
            wordings = tuple(wording for entry in plain for wording in entry.wordings)
            blocks = _joined(blocks, wordings, keys, thresholds)
        return QuestionIndex(of_subject, +lengths, blocks)

    def about(self, question: str) -> dict[str, list[str]]:
        """Return the facts about each subject in a question, by the question without that subject."""
        words, found = words_of(question), dict[str, list[str]]()
        for subject, places in subjects_in(words, self.of_subject, self.lengths).items():
            found.setdefault(without(question, words, places), []).extend(self.of_subject[subject])
        return found

    def near(self, vector_E: Tensor) -> list[tuple[IndexedWording, float, float]]:
        """Return the wordings without a subject whose cosines reach their thresholds, and both."""
        return [
            (wordings[row], cosine, least) for wordings, table in self.blocks for row, cosine, least in table.reached(vector_E)
        ]


def _by_subject(entries: Iterable[IndexedRecord]) -> dict[Words, list[IndexedRecord]]:
    found: dict[Words, list[IndexedRecord]] = {}
    for entry in entries:
        found.setdefault(entry.subject, []).append(entry)
    return found


def _joined(
    blocks: Sequence[PlainRecords], wordings: tuple[IndexedWording, ...], key_NE: Tensor, threshold_N: Tensor
) -> tuple[PlainRecords, ...]:
    """Add a block, and join the last ones until each is more than twice as long as the next: few, joined a few times."""
    first = list(blocks)
    while first and len(first[-1].wordings) <= 2 * len(wordings):
        before, table = first.pop()
        wordings, key_NE = before + wordings, torch.cat([table.key_NE, key_NE])
        threshold_N = torch.cat([table.threshold_N, threshold_N])
    return (*first, PlainRecords(wordings, KeyTable.of(key_NE, threshold_N)))
