"""What reading edits met on its way: the formats of its files, and the records it skipped, counted by reason."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from errata.edit import EditRejected

NUM_EXAMPLES = 3
MAX_REASONS = 50  # so that a file in which everything is wrong in its own way does not fill the memory
NUMBER = re.compile(r"\b\d+(?:,\d+)*")


@dataclass
class _Wording:
    """A reason without what is of one record alone: quoted texts, the file, and of its `numbers` those that vary (N)."""

    wording: str
    numbers: list[str]

    @classmethod
    def of(cls, rejected: EditRejected) -> _Wording:
        reason = re.sub(r" \([^()]*\)$", "", rejected.reason)
        reason = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "…", reason)
        wording = f"{rejected.field}: {reason}" if rejected.field else reason
        return cls(wording, NUMBER.findall(wording))

    @property
    def general(self) -> str:
        return NUMBER.sub("N", self.wording)

    @property
    def text(self) -> str:
        numbers = iter(self.numbers)
        return NUMBER.sub(lambda _: next(numbers), self.wording)

    def meet(self, other: _Wording) -> None:
        """`other` has the same `general`."""
        self.numbers = [one if one == two else "N" for one, two in zip(self.numbers, other.numbers, strict=True)]


@dataclass
class SkipReport:
    """Filled in while edits are read; `formats` has the name of each file with its format."""

    formats: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    _seen: dict[str, _Wording] = field(default_factory=dict)

    @property
    def num_skipped(self) -> int:
        return self.skipped.total()

    def skip(self, rejected: EditRejected) -> None:
        wording = _Wording.of(rejected)
        reason = wording.general
        if reason not in self.skipped and len(self.skipped) >= MAX_REASONS:
            reason = "other reasons"
            wording = _Wording(reason, [])
        self._seen.setdefault(reason, wording).meet(wording)
        self.skipped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(str(rejected))

    def report(self) -> str:
        """A line for each reason, the most frequent first, with the first examples under it."""
        lines = [f"skipped {self.num_skipped:,} record{'s' * (self.num_skipped != 1)}"] if self.skipped else []
        for reason, count in self.skipped.most_common():
            lines += [
                f"  {count:,} × {self._seen[reason].text}",
                *(f"    {example[:200]}" for example in self.examples[reason]),
            ]
        return "\n".join(lines)
