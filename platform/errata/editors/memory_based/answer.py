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

from errata.delta.memory_delta import MemoryDelta
from errata.edit import EditBatch
from errata.edit_memory import encoder
from errata.edit_memory.bank import Kind
from errata.edit_memory.hooks import bank_of
from errata.edit_memory.past import with_past
from errata.editors.editor import check_batch
from errata.editors.memory_based.questions import QuestionMemory, question_records
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.prefix_cache import BatchCache


@dataclass(frozen=True)
class AnswerMemory(QuestionMemory):
    """Answer memory. `max_false` is the share of probe questions that a record without a subject may answer."""

    kind: ClassVar[Kind] = "answer"

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        check_batch(batch, self.max_batch)
        records = tuple(replace(record, answer=row.answer) for row, record in question_records(batch, state))
        records = with_past(records, bank_of(model.module))
        return MemoryDelta("answer", encoder.NAME, records), replace(state, num_edits=state.num_edits + len(batch))
