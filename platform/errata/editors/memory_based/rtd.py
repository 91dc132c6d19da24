"""RTD: Reference Trustable Decoding, a datastore of last states whose tokens are mixed into what the model says.

Paper: RTD (arXiv 2409.20181), with a gate, because it is published for tasks and not for corrections.
Equation: p(y) = lambda r(y) + (1 - lambda) p_LM(y), r(y) = the sum over those of the K nearest references whose token is y of
softmax(-d / T), with d = |h - h_n|^2. An edit (x, y_1 .. y_T) has the references h(x, y_1 .. y_t-1) -> y_t, h is the input of
the output layer.
Deviations: lambda is 0 where no reference has a cosine of at least tau, so that other text keeps the model's bits; states have
length 1, so that one T suits all models (published: 160 to 5000, by model); one head (the paper also splits h into 32).
tau is calibrated as the state memory's, on the probes beside the unedited model. The last state is the paper's choice.
It knows the next token better than the question, so that other phrasings are met seldom; `state` reads an earlier module.
Remembers: tau. The references are in the memory. T answer tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch

from errata.delta.memory_delta import MemoryDelta
from errata.edit import EditBatch
from errata.edit_memory.bank import Kind, Record
from errata.edit_memory.lookup import unit
from errata.editors.editor import check_batch, check_modules
from errata.editors.memory_based.memory_editor import THRESHOLDS, ThresholdMemory, check_inputs, inputs_at_answers, output_layer
from errata.editors.state import EditorState
from errata.model.encoding import encode_rows
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.text.dialogue import Dialogue
from errata.text.rules import fact_of


@dataclass(frozen=True)
class RTD(ThresholdMemory):
    """RTD. `share` is lambda, `temperature` T and `nearest` K."""

    _: KW_ONLY
    share: float = 0.95
    temperature: float = 0.01
    nearest: int = 32

    kind: ClassVar[Kind] = "datastore"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(f"share is the references' part of the distribution, above 0 and below 1, not {self.share:g}")
        if self.temperature <= 0 or self.nearest < 1:
            raise ValueError(
                f"temperature is above 0 and nearest at least 1, not {self.temperature:g} and {self.nearest}: references would "
                "have no weight"
            )

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        return self.thresholds(model, output_layer(model))

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        check_batch(batch, self.max_batch)
        site = output_layer(model)
        encoded = encode_rows(model.renderer, batch.rows, model.device)
        state_TH, nll_T = inputs_at_answers(model, encoded, site)
        check_inputs(batch, encoded, state_TH, nll_T)
        keys, tokens = unit(state_TH).split(encoded.answer_lengths), encoded.targets_T.split(encoded.answer_lengths)
        records = []
        for row, key_tH, token_t in zip(batch.rows, keys, tokens, strict=True):
            threshold = float(state.tensors[THRESHOLDS][int(isinstance(row.prompt, Dialogue))])
            limits = {"threshold": threshold, "temperature": self.temperature, "share": self.share}
            rows = {name: torch.full_like(token_t, value, dtype=torch.float32) for name, value in limits.items()}
            rows |= {"key": key_tH, "token": token_t, "nearest": torch.full_like(token_t, self.nearest)}
            edit, text = batch.edits[row.edit], f"{row.prompt} -> {row.answer}"
            records.append(Record(fact_of(row.prompt), text, rows, edit.subject or "", edit.id or ""))
        return MemoryDelta("datastore", site, tuple(records)), replace(state, num_edits=state.num_edits + len(batch))
