"""The report of a reading: the format of each file, and by code and field what was skipped and what was left out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from errata.edit import EditRejected

NUM_EXAMPLES = 3
MAX_REASONS = 50  # bounds the report of a file in which every record names another field
OTHER_REASONS = "other reasons"
INDEX = re.compile(r"\[\d+\]")  # of an element in a field's path


@dataclass
class SkipReport:
    """Counts and first examples of what a reading did without, filled in while edits are read.

    `formats` maps a file's name to its format. `skipped` counts records by reason: the refusal's code and field, such as
    `wrong_type (rephrasings[])`. `left_out` counts, in the same way, optional fields of edits that were read: empty ones,
    probes at fault, subjects that are not in the prompt.
    """

    formats: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    left_out_examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_skipped(self) -> int:
        return self.skipped.total()

    @property
    def num_left_out(self) -> int:
        return self.left_out.total()

    def skip(self, rejected: EditRejected) -> None:
        """Count a skipped record."""
        _count(self.skipped, self.examples, rejected)

    def leave_out(self, rejected: EditRejected, count: int = 1) -> None:
        """Count a field that an edit was read without, or a column that `count` edits were read without."""
        _count(self.left_out, self.left_out_examples, rejected, count)

    def report(self) -> str:
        """One line per reason, the most frequent first, each with its first examples; empty if all was read whole."""
        lines = [f"skipped {self.num_skipped:,} record{'s' * (self.num_skipped != 1)}"] if self.skipped else []
        lines += _lines(self.skipped, self.examples)
        if self.left_out:
            lines.append(f"left out {self.num_left_out:,} field{'s' * (self.num_left_out != 1)} of edits that were read")
        return "\n".join([*lines, *_lines(self.left_out, self.left_out_examples)])


def _count(counts: Counter[str], examples: dict[str, list[str]], rejected: EditRejected, number: int = 1) -> None:
    reason = rejected.code.value
    if rejected.field:
        reason += f" ({INDEX.sub('[]', rejected.field)})"
    if reason not in counts and len(counts) >= MAX_REASONS:
        reason = OTHER_REASONS
    counts[reason] += number
    kept = examples.setdefault(reason, [])
    if len(kept) < NUM_EXAMPLES:
        kept.append(str(rejected))


def _lines(counts: Counter[str], examples: dict[str, list[str]]) -> list[str]:
    return [
        line
        for reason, count in counts.most_common()
        for line in (f"  {count:,} × {reason}", *(f"    {example[:200]}" for example in examples[reason]))
    ]
