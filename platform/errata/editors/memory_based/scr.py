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

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

from errata.delta.memory_delta import MemoryDelta
from errata.edit import Code, EditBatch, EditRejected, Fault, Row
from errata.edit_memory.bank import Kind, Record
from errata.editors.memory_based.questions import QuestionMemory
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.prefix_cache import BatchCache
from errata.text.rules import fact_of

BEFORE_FACT = "Known fact: "


@dataclass(frozen=True)
class SCR(QuestionMemory):
    """SCR. `max_false` is the share of probe questions that the text of a record without a subject may be put before.

    An answer reads one text, of at most `max_text_tokens`.
    """

    _: KW_ONLY
    max_text_tokens: int = 128

    kind: ClassVar[Kind] = "text"

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        delta, after = super().edit(model, batch, state, cache)
        facts = {fact_of(prompt): i for i, edit in enumerate(batch) for prompt in edit.prompts}
        lengths = [len(model.tokenizer(record.text, add_special_tokens=False)["input_ids"]) for record in delta.records]
        too_long = [(facts.get(r.fact), n) for r, n in zip(delta.records, lengths, strict=True) if n > self.max_text_tokens]
        if faults := [Fault(i, "target", Code.TOO_LONG, self._too_long(n)) for i, n in too_long if i is not None]:
            raise EditRejected.of(faults)
        return delta, after

    def _too_long(self, num_tokens: int) -> str:
        return (
            f"makes a text of {num_tokens} tokens, and each answer that it is put before may read {self.max_text_tokens}: "
            "shorten it, or set max_text_tokens (`errata serve --set`)"
        )

    def written(self, row: Row, record: Record) -> Record:
        return replace(record, text=BEFORE_FACT + record.text)
