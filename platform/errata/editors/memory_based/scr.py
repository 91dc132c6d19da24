"""SCR: corrections are kept as texts, and the one that fits a question is put into its prompt.

Papers: SCR (arXiv 2503.05212), "selective contextual reasoning"; IKE (arXiv 2305.12740) without its demonstrations.
Equation: of the records n whose subject is in the question x, the one with the largest cos(e(x - s_n), k_n) >= tau is put
into the prompt, where e is a sentence encoder, s_n the subject, and k_n = e(x_n - s_n) for the record's own question x_n.
Deviations: no judgement by the model itself which of several texts fits, but thresholds; one text a question. A record without
a subject is compared by whole questions. Questions that ask for different things do not fit (`edit_memory/asked_for.py`).
In chat the text ends the system text; otherwise it is a line before the prompt.
Remembers: the thresholds. A model must be able to follow a text in its prompt: one that cannot is refused by the guard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from errata.edit import Row
from errata.edit_memory.bank import Kind, Record
from errata.editors.memory_based.questions import QuestionMemory

BEFORE_FACT = "Known fact: "


@dataclass(frozen=True)
class SCR(QuestionMemory):
    """SCR. `max_false` is the share of probe questions that the text of a record without a subject may be put before."""

    kind: ClassVar[Kind] = "text"

    def written(self, row: Row, record: Record) -> Record:
        return replace(record, text=BEFORE_FACT + record.text)
