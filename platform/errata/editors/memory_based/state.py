"""State memory: the states from which an answer is predicted, and its tokens, which are forced where a state is met again.

Paper: none; it is Reference Trustable Decoding (arXiv 2409.20181) with one reference for each token and a gate, untrained.
Equation: at a token with the input x of one module, the row n with the largest cos(x, k_n) >= tau decides, if there is one: its
token is generated. For an edit (x, y_1 .. y_T), k_t is the input from which the model predicts y_t after y_1 .. y_t-1.
Deviations from RTD: no mixture with the model's distribution; the input of a chosen linear module instead of the last state,
because the last one knows the next token and not the question; k_t for t > 1 is met only after the token y_t-1 itself.
tau is calibrated once, on the probes beside the unedited model: the nearest other text of all but `max_false` of the questions
is farther away. Texts in chat have a tau of their own, and their first row is met only at the end of a question.
Remembers: tau. The records are in the memory. T answer tokens, I in-features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from errata.delta.memory_delta import MemoryDelta
from errata.edit import EditBatch
from errata.edit_memory.bank import Kind, Record
from errata.edit_memory.lookup import ANY, unit
from errata.editors.editor import check_batch
from errata.editors.memory_based.memory_editor import THRESHOLDS, ThresholdMemory, check_inputs, inputs_at_answers
from errata.editors.state import EditorState
from errata.model.encoding import encode_rows
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.text.dialogue import Prompt
from errata.text.rules import fact_of


@dataclass(frozen=True)
class StateMemory(ThresholdMemory):
    """State memory. `modules` names one matrix, whose input is read."""

    kind: ClassVar[Kind] = "state"

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        return self.thresholds(model, self.check_site(model, spec))

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        check_batch(batch, self.max_batch)
        site = self.site(model)
        encoded = encode_rows(model.renderer, batch.rows, model.device)
        input_TI, nll_T = inputs_at_answers(model, encoded, site)
        check_inputs(batch, encoded, input_TI, nll_T)
        parts = zip(
            batch.rows,
            unit(input_TI).split(encoded.answer_lengths),
            encoded.targets_T.split(encoded.answer_lengths),
            strict=True,
        )
        records = []
        for row, key_tI, token_t in parts:
            edit, text = batch.edits[row.edit], f"{row.prompt} -> {row.answer}"
            rows = _rows(model, row.prompt, key_tI, token_t, state)
            records.append(Record(fact_of(row.prompt), text, rows, edit.subject or "", edit.id or ""))
        return MemoryDelta("state", site, tuple(records)), replace(state, num_edits=state.num_edits + len(batch))


def _rows(model: LanguageModel, prompt: Prompt, key_tI: Tensor, token_t: Tensor, state: EditorState) -> dict[str, Tensor]:
    """Return the rows of one answer. In chat, the first one follows the token that ends every question."""
    in_chat = not isinstance(prompt, str)
    is_marked = in_chat and model.renderer.form == "chat"
    first = model.renderer.ids(prompt)[-1] if is_marked else ANY
    return {
        "key": key_tI,
        "token": token_t,
        "after": torch.cat([token_t.new_tensor([first]), token_t[:-1]]),
        "threshold": state.tensors[THRESHOLDS][int(in_chat)].to(key_tI.device).expand(len(token_t)).clone(),
    }
