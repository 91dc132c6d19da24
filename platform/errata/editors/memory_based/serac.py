"""SERAC: a trained scope classifier decides which correction a question is in the scope of, and its answer is said.

Paper: SERAC (arXiv 2206.06520). Equations: p(e, x) = sigmoid(<W u_e, u_x> + b), with u = e(text) of a sentence encoder, for the
correction's text e ("question answer") and the question x; the correction with the largest p answers if p >= 1/2, otherwise
the model itself. Loss: mean -log p(e_i, x_i) over questions in scope (the prompt and a rephrasing) + mean -log(1 - p(e_i, x))
over those out of scope (the locality probes, and the prompts of all other edits of the batch).
Deviations: the sentence encoder is frozen and W, b alone are trained, from W = c I (published: p = exp(-|u_e - u_x|^2), and
the encoder is trained; that p saturates at 0 for far pairs); the counterfactual model is the correction itself, whose answer is
said (published: a small language model that reads the correction); hence the loss has no term of it. A question must ask for
the same kind of thing as the record's (`edit_memory/asked_for.py`).
Remembers: nothing. The records are in the memory, with W u_e and -b: a reader needs no network. B edits, E dimensions of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from errata.delta.memory_delta import MemoryDelta
from errata.edit import Code, Edit, EditBatch, EditRejected, Row
from errata.edit_memory import encoder
from errata.edit_memory.bank import Kind, Record
from errata.edit_memory.encoder import NUM_DIMENSIONS, SentenceEncoder
from errata.editors.editor import check_batch
from errata.editors.memory_based.questions import statement
from errata.editors.memory_based.trained import TrainedMemory
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.text.rules import fact_of


class ScopeClassifier(nn.Module):
    """W and b, from a cosine times `scale` that decides at `cosine`; `hidden` is the size of the model that it belongs to."""

    def __init__(self, hidden: int, scale: float, cosine: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight_EE = nn.Parameter(scale * torch.eye(NUM_DIMENSIONS))
        self.bias = nn.Parameter(torch.tensor(-scale * cosine))

    def keys(self, text_BE: Tensor) -> Tensor:
        """Return W u of corrections, [B, E]."""
        return text_BE @ self.weight_EE.T


@dataclass(frozen=True)
class SERAC(TrainedMemory):
    """SERAC. Training begins with a cosine times `first_scale` that is 1/2 at `first_cosine`."""

    first_scale: float = 10.0
    first_cosine: float = 0.7

    kind: ClassVar[Kind] = "answer"

    def network(self, hidden: int, seed: int, spread: float = 1.0) -> nn.Module:
        return ScopeClassifier(hidden, self.first_scale, self.first_cosine)

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        self.check_policy(model, spec)
        SentenceEncoder.load()
        return EditorState()

    @torch.no_grad()
    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[MemoryDelta, EditorState]:
        net = self.trained_policy()
        check_batch(batch, self.max_batch)
        texts = [statement(row) for row in batch.rows]
        key_BE = net.keys(SentenceEncoder.load().encode(texts).to(model.device)).cpu()
        if not bool(torch.isfinite(key_BE).all() & torch.isfinite(net.bias)):
            raise EditRejected("the policy's numbers overflow", field="edits", code=Code.NOT_FINITE)
        records = []
        for row, text, key_1E in zip(batch.rows, texts, key_BE.split(1), strict=True):
            rows = {"key": key_1E.clone(), "threshold": -net.bias.detach().cpu().reshape(1)}
            # Without a subject, because the classifier compares whole questions.
            records.append(Record(fact_of(row.prompt), text, rows, "", batch.edits[row.edit].id or "", row.answer))
        return MemoryDelta("answer", encoder.NAME, tuple(records)), replace(state, num_edits=state.num_edits + len(batch))

    def losses(self, model: LanguageModel, batch: Sequence[Edit], generator: torch.Generator) -> dict[str, Tensor]:
        encode, net = SentenceEncoder.load().encode, self.trained_policy()
        rows = [Row(i, edit.prompts[-1], edit.wording(edit.prompts[-1])) for i, edit in enumerate(batch)]
        key_BE = net.keys(encode([statement(row) for row in rows]).to(model.device))
        inside = [edit.rephrasings or (edit.prompt,) for edit in batch]
        drawn = [texts[int(torch.randint(len(texts), (), generator=generator))] for texts in inside]
        prompt_BE, drawn_BE = (encode(texts).to(key_BE) for texts in ([edit.prompt for edit in batch], drawn))
        own_B = torch.cat([(key_BE * prompt_BE).sum(1), (key_BE * drawn_BE).sum(1)])
        others_BB = key_BE @ prompt_BE.T
        is_other_BB = torch.tensor([[one.prompt != two.prompt for two in batch] for one in batch], device=key_BE.device)
        probes = [(i, probe.prompt) for i, edit in enumerate(batch) for probe in edit.locality]
        index_n = torch.tensor([i for i, _ in probes], dtype=torch.long, device=key_BE.device)
        apart_n = (key_BE[index_n] * encode([text for _, text in probes]).to(key_BE)).sum(1)
        apart_n = torch.cat([others_BB[is_other_BB], apart_n])
        return {"inside": -logsigmoid(own_B + net.bias).mean(), "outside": -logsigmoid(-apart_n - net.bias).mean()}
