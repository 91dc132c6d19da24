"""Which version made a model answer as it does: a search by halves, so that of N versions about log2 N are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from errata.edit import Edit
from errata.history.lineage import taken_out
from errata.ledger import Ledger


@dataclass(frozen=True)
class Blamed:
    """`version` answers `prompt` as the live one does (`after`), the one before it does not (`before`).

    `version` is None, and `before` is `after`, if the unedited model answers so already. `edits` are those of the version,
    likeliest first, or those that it took out if it is a revert; `num_asked` is how many versions were asked.
    """

    prompt: str
    version: int | None
    before: str
    after: str
    edits: tuple[Edit, ...]
    num_asked: int

    def to_json(self) -> dict[str, Any]:
        names = ("prompt", "version", "before", "after", "num_asked")
        return {name: getattr(self, name) for name in names} | {"edits": [edit.to_json() for edit in self.edits]}


def blame(chain: Sequence[int], answer: Callable[[int], str]) -> tuple[int, int]:
    """(before, after): neighbours in `chain` of which only `after` answers as the last of the chain does.

    The first of the chain twice, if it does so already. An answer that came, went and came back has several such places, and
    one of them is found.
    """
    live = answer(chain[-1])
    if len(chain) == 1 or answer(chain[0]) == live:
        return chain[0], chain[0]
    low, high = 0, len(chain) - 1  # the answer at low is another, the one at high is the live one
    while high - low > 1:
        middle = (low + high) // 2
        if answer(chain[middle]) == live:
            high = middle
        else:
            low = middle
    return chain[low], chain[high]


def blamed(ledger: Ledger, head: int, prompt: str, answer: Callable[[int], str]) -> Blamed:
    """The version among those that make `head` to which its answer is due, by what each of them answers to `prompt`."""
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
    """What a version changed: the edits that it made, or those that it took out by subtracting their versions."""
    version = ledger.version(number)
    return [*version.edits, *(edit for gone in taken_out(version) for edit in ledger.version(gone).edits)]


def likeliest_first(prompt: str, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """By what they have in common with the prompt: a wording, else the subject, else words; else as they were."""
    words = _words(prompt)

    def kinship(edit: Edit) -> tuple[bool, bool, float]:
        same = prompt.strip() in [text.strip() for text in (edit.prompt, *edit.rephrasings)]
        about = edit.subject is not None and edit.subject in prompt
        shared = max(_overlap(words, _words(text)) for text in (edit.prompt, *edit.rephrasings))
        return same, about, shared

    return tuple(sorted(edits, key=kinship, reverse=True))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().split())


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))
