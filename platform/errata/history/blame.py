"""Blame: a bisection over the versions for the one that made the model answer as it does. About log2 N of N are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from errata.edit import Edit
from errata.history.lineage import taken_out
from errata.ledger import Ledger
from errata.text.rules import same_text, subject_span


@dataclass(frozen=True)
class Blamed:
    """The result of a blame: `version` answers `prompt` as the live version does (`after`), and its parent does not (`before`).

    `version` is None, and `before` equals `after`, if the unedited model already gives the live answer. `edits` are those of
    the version, or those that it took out if it is a revert, the likeliest cause first. `num_asked` counts the versions asked.
    """

    prompt: str
    version: int | None
    before: str
    after: str
    edits: tuple[Edit, ...]
    num_asked: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        names = ("prompt", "version", "before", "after", "num_asked")
        return {name: getattr(self, name) for name in names} | {"edits": [edit.to_json() for edit in self.edits]}


def blame(chain: Sequence[int], answer: Callable[[int], str]) -> tuple[int, int]:
    """Find neighbours (before, after) in `chain` such that only `after` answers as the last version of the chain does.

    Returns the first version twice if it already gives that answer. If the answer came, went and came back, one of the places
    where it came is found.
    """
    live = answer(chain[-1])
    if len(chain) == 1 or answer(chain[0]) == live:
        return chain[0], chain[0]
    low, high = 0, len(chain) - 1  # The answer at `low` differs from the live one, the answer at `high` equals it.
    while high - low > 1:
        middle = (low + high) // 2
        if answer(chain[middle]) == live:
            high = middle
        else:
            low = middle
    return chain[low], chain[high]


def blamed(ledger: Ledger, head: int, prompt: str, answer: Callable[[int], str]) -> Blamed:
    """Find the version in the chain to `head` that introduced its answer; `answer` gives the answer of one version."""
    answers: dict[int, str] = {}

    def asked(version: int) -> str:
        if version not in answers:
            answers[version] = answer(version)
        return answers[version]

    before, after = blame([0, *ledger.chain(head)], asked)
    is_base = before == after
    edits = () if is_base else likeliest_first(prompt, edits_of(ledger, after))
    return Blamed(prompt, None if is_base else after, answers[before], answers[after], edits, len(answers))


def edits_of(ledger: Ledger, number: int) -> list[Edit]:
    """Return the edits that a version changed: those that it made, or those that it took out by subtracting their versions."""
    version = ledger.version(number)
    return [*version.edits, *(edit for gone in taken_out(version) for edit in ledger.version(gone).edits)]


def likeliest_first(prompt: str, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Sort by what edits share with the prompt: a wording, otherwise the subject, otherwise words. Ties keep their order."""
    words = _words(prompt)

    def similarity(edit: Edit) -> tuple[bool, bool, float]:
        same = same_text(prompt) in map(same_text, (edit.prompt, *edit.rephrasings))
        about = edit.subject is not None and subject_span(prompt, edit.subject) is not None
        shared = max(_overlap(words, _words(text)) for text in (edit.prompt, *edit.rephrasings))
        return same, about, shared

    return tuple(sorted(edits, key=similarity, reverse=True))


def _words(text: str) -> frozenset[str]:
    return frozenset(same_text(text).lower().split())


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))
