"""Duplicates and contradictions in a stream of edits, found by hashes instead of texts.

Two edits concern the same fact if their prompts, and in chat the messages before them, are equal apart from white space and
case of the prompt. This covers "same subject and relation" as far as text shows it: the same template with the same subject
gives the same prompt, but two phrasings of a relation are not recognised as one. Equal targets make a duplicate, different
targets a conflict. `HashedEdits` holds 16 bytes an edit while reading, and about 50 while it searches.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from errata.edit import Edit

NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Repetitions:
    """Counts and examples: edits that repeat an earlier one, facts with several targets, and the edits in such conflicts.

    Examples are pairs of edit numbers, from 0 in the whole stream, in the order of the stream.
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
        self._facts, self._targets = array("q"), array("q")

    def add(self, edit: Edit) -> None:
        fact = _same(edit.prompt)
        self._facts.append(hash((fact, edit.before) if edit.before else fact))
        self._targets.append(hash(_same(edit.target)))

    def __len__(self) -> int:
        return len(self._facts)

    def repetitions(self) -> Repetitions:
        facts = np.frombuffer(self._facts, np.int64) if self._facts else np.empty(0, np.int64)
        targets = np.frombuffer(self._targets, np.int64) if self._targets else np.empty(0, np.int64)
        order_E = np.argsort(facts, kind="stable")  # groups edits by fact and keeps the stream's order
        starts_E = np.flatnonzero(np.r_[True, np.diff(facts[order_E]) != 0]) if len(facts) else np.empty(0, np.int64)
        sizes = np.diff(np.r_[starts_E, len(facts)])
        duplicates: list[tuple[int, int]] = []
        conflicts: list[tuple[int, int]] = []
        num_in_conflict = 0
        for start, size in zip(starts_E[sizes > 1], sizes[sizes > 1], strict=True):
            first_with: dict[int, int] = {}
            for edit in order_E[start : start + size].tolist():
                earlier = first_with.setdefault(int(targets[edit]), edit)
                if earlier != edit:
                    duplicates.append((earlier, edit))
            if len(first_with) > 1:
                one, other = list(first_with.values())[:2]
                conflicts.append((one, other))
                num_in_conflict += int(size)
        return Repetitions(
            num_duplicates=len(duplicates),
            num_conflicts=len(conflicts),
            num_in_conflict=num_in_conflict,
            duplicates=tuple(sorted(duplicates, key=max)[:NUM_EXAMPLES]),
            conflicts=tuple(sorted(conflicts, key=max)[:NUM_EXAMPLES]),
        )


def _same(text: str) -> str:
    return " ".join(text.split()).casefold()
