"""Answer memory: the answer of the record that a question fits is said, and the model is not asked.

Paper: none; it is SERAC (arXiv 2206.06520) with a sentence encoder for its scope classifier, and the answer itself in the place
of its counterfactual model.
Equation: of the records n whose subject is in the question x, the one with the largest cos(e(x - s_n), k_n) >= tau, where e
is the encoder, s_n the subject, and k_n = e(x_n - s_n) for the record's own question x_n.
Deviations: nothing is trained. A record without a subject is compared by whole questions, with a threshold that is calibrated
on the probes beside the unedited model. Questions that ask for different things do not fit (`edit_memory/asked_for.py`).
Remembers: the thresholds. The records are in the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from errata.edit import Row
from errata.edit_memory.bank import Kind, Record
from errata.editors.memory_based.questions import QuestionMemory


@dataclass(frozen=True)
class AnswerMemory(QuestionMemory):
    """Answer memory. `max_false` is the share of probe questions that a record without a subject may answer."""

    kind: ClassVar[Kind] = "answer"

    def written(self, row: Row, record: Record) -> Record:
        return replace(record, answer=row.answer)
