"""The report of a reading: the format of each file, and the skipped records by code and field."""

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
    """Counts and first examples of skipped records, filled in while edits are read.

    `formats` maps a file's name to its format. `skipped` counts records by reason: the refusal's code and field, such as
    `wrong_type (rephrasings[])`.
    """

    formats: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_skipped(self) -> int:
        return self.skipped.total()

    def skip(self, rejected: EditRejected) -> None:
        """Count a skipped record."""
        reason = rejected.code.value
        if rejected.field:
            reason += f" ({INDEX.sub('[]', rejected.field)})"
        if reason not in self.skipped and len(self.skipped) >= MAX_REASONS:
            reason = OTHER_REASONS
        self.skipped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(str(rejected))

    def report(self) -> str:
        """One line per reason, the most frequent first, each with its first examples."""
        lines = [f"skipped {self.num_skipped:,} record{'s' * (self.num_skipped != 1)}"] if self.skipped else []
        for reason, count in self.skipped.most_common():
            lines += [f"  {count:,} × {reason}", *(f"    {example[:200]}" for example in self.examples[reason])]
        return "\n".join(lines)
