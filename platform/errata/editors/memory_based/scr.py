"""SCR: corrections are kept as texts, and the one that fits a question is put into its prompt.

Papers: SCR (arXiv 2503.05212), "selective contextual reasoning"; IKE (arXiv 2305.12740) without its demonstrations.
Equation: of the records n, the one with the largest margin max((cos(x, k_n) - tau) / (1 - tau), (w_n - sigma) / (1 - sigma))
is put into the prompt, if that margin is at least 0, the value of "nothing fits". x is the input of one module at the
question's end, w_n the share of BM25 weight of the record's question that the asked question has.
Deviations: no judgement by the model itself which of several texts fits, but thresholds; dense retrieval by the model's own
states instead of a sentence encoder; one text a question. tau and sigma are calibrated as the state memory's tau.
In chat the text ends the system text; otherwise it is a line before the prompt.
Remembers: the thresholds. A model must be able to follow a text in its prompt: one that cannot is refused by the guard.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import torch

from errata.delta.memory_delta import MemoryDelta
from errata.edit import EditBatch, Row
from errata.edit_memory.bank import Record
from errata.editors.editor import check_batch
from errata.editors.memory_based.memory_editor import (
    MemoryEditor,
    calibrated,
    calibrated_lexical,
    check_inputs,
    ends_of,
    inputs_at_answers,
)
from errata.editors.state import EditorState
from errata.model.encoding import encode_rows
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.text.dialogue import Dialogue
from errata.text.joining import separator
from errata.text.rules import fact_of

THRESHOLDS, LEXICAL = "thresholds", "lexical_threshold"  # in the state
BEFORE_FACT = "Known fact: "


@dataclass(frozen=True)
class SCR(MemoryEditor):
    """SCR. `modules` names one matrix, whose input at a question's end is compared.

    With thresholds above 0 (`threshold` of cosines, `lexical_threshold` of shares of words) these are not calibrated; above 1,
    nothing fits by that score.
    """

    modules: tuple[str, ...] = ("layers.3.mlp.down_proj",)
    _: KW_ONLY
    max_false: float = 0.01
    threshold: float = 0.0
    lexical_threshold: float = 0.0
    max_batch: int = 1000

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        site, share = self.check_site(model, spec), self.max_false / 2  # Two scores may err.
        completion = self.threshold or calibrated(model, site, share, in_chat=False)
        chat = completion
        if not self.threshold and model.renderer.form == "chat":
            chat = calibrated(model, site, share, in_chat=True)
        lexical = self.lexical_threshold or calibrated_lexical(model, share)
        return EditorState(0, {THRESHOLDS: torch.tensor([completion, chat]), LEXICAL: torch.tensor([lexical])})

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        check_batch(batch, self.max_batch)
        site = self.site(model)
        encoded = encode_rows(model.renderer, batch.rows, model.device)
        input_TI, nll_T = inputs_at_answers(model, encoded, site)
        check_inputs(batch, encoded, input_TI, nll_T)
        with torch.no_grad():
            key_nI = ends_of(model, site, batch.prompts)
        records = []
        for row, key_1I in zip(batch.rows, key_nI.split(1), strict=True):
            threshold = state.tensors[THRESHOLDS][int(isinstance(row.prompt, Dialogue))]
            limits = {"threshold": threshold.reshape(1), LEXICAL: state.tensors[LEXICAL]}
            rows = {"key": key_1I} | {name: limit.to(key_1I) for name, limit in limits.items()}
            records.append(Record(fact_of(row.prompt), statement(row), rows))
        return MemoryDelta("text", site, tuple(records)), replace(state, num_edits=state.num_edits + len(batch))


def statement(row: Row) -> str:
    """Return the text that tells a correction: the completed prompt, or the question with its answer."""
    if isinstance(row.prompt, str):
        return f"{BEFORE_FACT}{row.prompt.strip()}{separator(row.prompt.strip(), row.answer)}{row.answer}."
    return f"{BEFORE_FACT}{row.prompt.question.strip()} {row.answer}"
