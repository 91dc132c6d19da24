"""Duplicates and contradictions in a stream of edits, found by hashes instead of texts.

Files are compared as a batch of the service is: two edits concern the same prompt if they share one of `Edit.keys`, of which an
edit of both forms has two, and agree if their targets are the same text (`errata.text.rules`). Equal targets make a duplicate,
different targets a conflict. Two phrasings of a relation are not recognised as one. `HashedEdits` holds 20 bytes a prompt while
reading, and about 60 while it searches.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from errata.edit import Edit
from errata.text.rules import same_text

NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Repetitions:
    """Counts and examples: edits that repeat an earlier one, contradictions about a prompt, and the edits in such conflicts.

    Examples are pairs of edit numbers, from 0 in the whole stream, in the order of the stream. Two edits that contradict each
    other in both forms are one conflict.
    """

    num_duplicates: int
    num_conflicts: int
    num_in_conflict: int
    duplicates: tuple[tuple[int, int], ...]
    conflicts: tuple[tuple[int, int], ...]


class HashedEdits:
    """Hashes of the edits of a stream; `repetitions` compares all that were added.

    The hashes are Python's, of 64 bits: among a million edits, two different texts collide with a probability of 3e-8.
    """

    def __init__(self) -> None:
        self._keys, self._targets, self._edits = array("q"), array("q"), array("I")
        self._num_edits = 0

    def add(self, edit: Edit) -> None:
        target = hash(same_text(edit.target))
        for key in edit.keys:
            self._keys.append(hash(key))
            self._targets.append(target)
            self._edits.append(self._num_edits)
        self._num_edits += 1

    def __len__(self) -> int:
        return self._num_edits

    def repetitions(self) -> Repetitions:
        duplicates, conflicts = dict[int, int](), set[tuple[int, int]]()
        is_in_conflict_E = np.zeros(len(self), bool)
        for rows in self._rows_of_one_prompt():
            first_with: dict[int, int] = {}
            for row in rows:
                edit = self._edits[row]
                if (earlier := first_with.setdefault(self._targets[row], edit)) != edit:
                    duplicates.setdefault(edit, earlier)
            if len(first_with) > 1:
                one, other = list(first_with.values())[:2]
                conflicts.add((one, other))
                is_in_conflict_E[[self._edits[row] for row in rows]] = True
        return Repetitions(
            num_duplicates=len(duplicates),
            num_conflicts=len(conflicts),
            num_in_conflict=int(is_in_conflict_E.sum()),
            duplicates=tuple((duplicates[edit], edit) for edit in heapq.nsmallest(NUM_EXAMPLES, duplicates)),
            conflicts=tuple(heapq.nsmallest(NUM_EXAMPLES, conflicts, key=max)),
        )

    def _rows_of_one_prompt(self) -> Iterator[list[int]]:
        """Yield the rows, in the order of the stream, of each prompt that has several."""
        keys = np.frombuffer(self._keys, np.int64) if self._keys else np.empty(0, np.int64)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0]) if len(keys) else np.empty(0, np.int64)
        sizes = np.diff(np.r_[starts, len(keys)])
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            yield order[start : start + size].tolist()
