"""What reading edits met on its way: the formats of its files, and the records it skipped, counted by reason."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from errata.edit import EditRejected

NUM_EXAMPLES = 3
MAX_REASONS = 50  # so that a file in which everything is wrong in its own way does not fill the memory


@dataclass
class Intake:
    """Filled in while edits are read; `formats` has the name of each file with its format."""

    formats: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_skipped(self) -> int:
        return self.skipped.total()

    def skip(self, rejected: EditRejected) -> None:
        reason = _general(rejected)
        if reason not in self.skipped and len(self.skipped) >= MAX_REASONS:
            reason = "other reasons"
        self.skipped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(str(rejected))

    def report(self) -> str:
        """A line for each reason, the most frequent first, with the first examples under it."""
        lines = [f"skipped {self.num_skipped:,} records"] if self.skipped else []
        for reason, count in self.skipped.most_common():
            lines += [f"  {count:,} × {reason}", *(f"    {example[:200]}" for example in self.examples[reason])]
        return "\n".join(lines)


def _general(rejected: EditRejected) -> str:
    """The reason without what is of this record alone: quoted texts, numbers and the file."""
    reason = re.sub(r" \([^()]*\)$", "", rejected.reason)
    reason = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "…", reason)
    reason = re.sub(r"\d[\d,]*", "N", reason)
    field_name = re.sub(r"\[\d+\]", "[N]", rejected.field or "")
    return f"{field_name}: {reason}" if field_name else reason
