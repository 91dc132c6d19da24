"""Shared parts of the editors of a memory: the module that they read, its inputs at the tokens of texts, and calibration.

T answer tokens, I in-features, M texts of a calibration, B rows, S sequence.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.edit import Code, EditBatch, EditRejected
from errata.edit_memory.lookup import unit
from errata.editors.editor import Editor, check_modules
from errata.editors.state import EditorState
from errata.guard.probes import Probes
from errata.model.encoding import Encoded, answer_log_probs, answer_nll, encode_text, padded, rows_at_head
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.text.dialogue import Dialogue, Prompt
from errata.timing import timed

NUM_QUESTIONS, NUM_SENTENCES, MAX_SENTENCE_TOKENS = 128, 32, 64  # of the probes that a threshold is calibrated on
ROWS_AT_ONCE = 32
THRESHOLDS = "thresholds"  # in the state: of completions, and of questions in chat
# Above these, rounding might keep a record from its own prompt: of vectors of sentences, and of states in 16 bits; and of
# states in 32 bits, which two engines compute alike up to a cosine of 1 - 1e-6.
MAX_THRESHOLD, MAX_THRESHOLD_32 = 0.995, 0.9999


class MemoryEditor(Editor, ABC):
    """Base class of the editors whose edits are records of a memory."""

    max_false: float

    writes: ClassVar[Literal["weights", "memory"]] = "memory"

    def __post_init__(self) -> None:
        if not 0 <= self.max_false <= 1:
            raise ValueError(f"max_false is a share of questions, from 0 to 1, not {self.max_false:g}")

    def site(self, model: LanguageModel) -> str:
        """Return the module whose input the memory reads. Raises `ValueError` unless the patterns match one."""
        return _one(find_matrices(model.module, self.modules))

    def check_site(self, model: LanguageModel, spec: ModelSpec) -> str:
        """Return the module whose input is read. Raises `ValueError` if the editor was made for another model."""
        check_modules(self.modules, model, spec)
        return _one(spec)


@dataclass(frozen=True)
class ThresholdMemory(MemoryEditor, ABC):
    """Base class of the memories of states with a cosine that decides; with a `threshold` above 0 nothing is calibrated."""

    modules: tuple[str, ...] = ("layers.3.mlp.down_proj",)
    _: KW_ONLY
    max_false: float = 0.01
    threshold: float = 0.0
    max_batch: int = 1000

    def thresholds(self, model: LanguageModel, site: str) -> EditorState:
        """Return the state before the first edit: the thresholds of completions and of questions in chat."""
        if self.threshold:
            return EditorState(0, {THRESHOLDS: torch.full((2,), self.threshold)})
        completion = calibrated(model, site, self.max_false, in_chat=False)
        chat = calibrated(model, site, self.max_false, in_chat=True) if model.renderer.form == "chat" else completion
        return EditorState(0, {THRESHOLDS: torch.tensor([completion, chat])})


def output_layer(model: LanguageModel) -> str:
    """Return the name of the module that computes the logits, whose input is the last state."""
    head = model.module.get_output_embeddings()
    return next(name for name, module in model.module.named_modules() if module is head)


def input_layer(model: LanguageModel) -> str:
    """Return the name of the module that embeds the tokens."""
    embedding = model.module.get_input_embeddings()
    return next(name for name, module in model.module.named_modules() if module is embedding)


def _one(spec: ModelSpec) -> str:
    if len(spec.names) != 1:
        raise ValueError(f"a memory reads one module, and these match: {', '.join(spec.names)}; give one (modules=...)")
    return spec.names[0]


@timed("capture")
@torch.no_grad()
def inputs_at_answers(model: LanguageModel, encoded: Encoded, site: str) -> tuple[Tensor, Tensor]:
    """Run the model; return the inputs of a module from which answer tokens are predicted, [T, I] in fp32, and -log p, [T]."""
    kept: list[Tensor] = []
    head = model.module.get_output_embeddings()
    handles = [
        model.module.get_submodule(site).register_forward_pre_hook(lambda _module, args: kept.append(args[0])),
        head.register_forward_pre_hook(lambda _head, args: kept.append(rows_at_head(head, kept.pop(), args[0]))),
    ]
    try:
        nll_T = answer_nll(answer_log_probs(model.module, encoded), encoded)
    finally:
        for handle in handles:
            handle.remove()
    return kept[-1].float().to(model.device), nll_T  # A memory that is there reads the prompts once before.


def check_inputs(batch: EditBatch, encoded: Encoded, input_TI: Tensor, nll_T: Tensor) -> None:
    """Raise `EditRejected` for the first edit at whose answer the module's input or the loss is not finite.

    Other texts may follow those of the batch.
    """
    finite_T = torch.isfinite(input_TI).all(1) & torch.isfinite(nll_T).to(input_TI.device)
    for row, part in zip(batch.rows, finite_T.split(encoded.answer_lengths), strict=False):
        if not bool(part.all()):
            edit = batch.edits[row.edit].id or row.edit
            raise EditRejected("the model's states or its loss are not finite here", edit=edit, code=Code.NOT_FINITE)


def calibrated(model: LanguageModel, site: str, max_false: float, in_chat: bool) -> float:
    """Return the cosine that all but `max_false` of the model's probe questions keep away from every other probe.

    A question's nearest other text is the record that would answer it wrongly. Raises `ValueError` for a module at which the
    states of different questions are as near to each other as rounding keeps those of one question.
    """
    question_MI, other_TI = probe_states(model, site, in_chat)
    if len(question_MI) < 2:
        return MAX_THRESHOLD
    nearest_M = (question_MI @ question_MI.T).fill_diagonal_(-1.0).amax(1)
    if len(other_TI):
        nearest_M = torch.maximum(nearest_M, (question_MI @ other_TI.T).amax(1))
    found, most = float(nearest_M.quantile(1 - max_false)), max_threshold(model)
    if found > most:
        raise ValueError(
            f"the inputs of {site} do not tell questions apart: those of different probe questions have a cosine of "
            f"{found:.5f}, and {most} is the most that is safe in {str(model.module.dtype).removeprefix('torch.')}: name a "
            "later module (modules=...), or set a threshold (threshold=...)"
        )
    return found


def max_threshold(model: LanguageModel) -> float:
    """Return the cosine that rounding does not keep a state from having with itself."""
    return MAX_THRESHOLD_32 if model.module.dtype == torch.float32 else MAX_THRESHOLD


@torch.no_grad()
def probe_states(model: LanguageModel, site: str, in_chat: bool) -> tuple[Tensor, Tensor]:
    """Return the inputs of a module at the ends of the model's probe questions, [M, I], and over its sentences, [T, I].

    Both are at length 1. Probes lie beside the model (docs/guard.md); without questions among them, the ends of their sentences
    stand for questions. There are none of either if there are fewer than two questions.
    """
    probes = Probes.beside(model.path).sample(NUM_QUESTIONS, NUM_SENTENCES)
    asked: list[Prompt] = [Dialogue.of(text) if in_chat else text for text in probes.questions or probes.sentences]
    if len(asked) < 2:
        return torch.empty(0, 0), torch.empty(0, 0)
    question_MI = ends_of(model, site, asked)
    if not probes.questions or not probes.sentences:
        return question_MI, question_MI[:0]
    text = encode_text(model.tokenizer, probes.sentences, MAX_SENTENCE_TOKENS, model.device)
    return question_MI, unit(inputs_at_answers(model, text, site)[0])


def ends_of(model: LanguageModel, site: str, prompts: Sequence[Prompt]) -> Tensor:
    """Return the inputs of a module at the last token of each prompt, at length 1, [M, I]."""
    rows = [list(model.renderer.ids(prompt)) for prompt in prompts]
    if site == output_layer(model):
        parts = [rows[begin : begin + ROWS_AT_ONCE] for begin in range(0, len(rows), ROWS_AT_ONCE)]
        encoded = [padded([(ids, ids[-1:]) for ids in part], model.renderer.pad_id, model.device) for part in parts]
        return unit(torch.cat([inputs_at_answers(model, part, site)[0] for part in encoded]))
    return unit(torch.stack(list(_ends_of_rows(model.module, site, rows))))


def _ends_of_rows(model: Any, site: str, rows: Sequence[list[int]]) -> Iterator[Tensor]:
    """Yield the input of a module at the last token of each row, read without the output layer, [I]."""
    kept: list[Tensor] = []
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[begin : begin + ROWS_AT_ONCE]
        width = max(map(len, part))
        ids_BS = torch.tensor([ids + ids[-1:] * (width - len(ids)) for ids in part], device=model.device)
        mask_BS = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in part], device=model.device)
        handle = model.get_submodule(site).register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
        try:
            model.base_model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False)
        finally:
            handle.remove()
        input_BSI = kept.pop()
        yield from (input_BSI[row, len(ids) - 1].float() for row, ids in enumerate(part))
