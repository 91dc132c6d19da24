"""RECIPE: a trained encoder turns each correction into a few vectors, which are put in front of the prompts that it fits.

Paper: RECIPE (arXiv 2405.03279). Equations, u = sqrt(E) e(text) of a sentence encoder: knowledge r = z + relu(W2 z + b2) with
z = W1 u + b1; query q = Wq u; a sentinel S is learned; s(q, r) = <q, r> / sqrt(R). Of the records, the one with the largest s
fires if s(q, r) > s(q, S), and puts P = Wp (r + relu(W3 r + b3)) + bp in front of the prompt. Losses: L1 and L3 pick the own
record or the sentinel among all records and the sentinel, L2 the sentinel where the own record is taken out; -log p of the
answers to the prompt and to a rephrasing with P in front; KL of unrelated answers without and with P. L2, L3 and -log p leave
out what has the largest probability by a factor (`margin`) already.
Deviations: the sentence encoder is frozen (published: RoBERTa, trained); the query's head is linear, so that sentinel and head
are folded into each key, k = sqrt(E / R) Wq^T (r - S), which fires where <e, k> > 0 and is all that a reader needs; R is 256
(published: 4096); the sentinel is a vector of R and not tokens of the encoder; P is in the scale of the model's embeddings.
Remembers: nothing. The records are in the memory. B edits, C columns of a batch's records and the sentinel, E and R dimensions
of texts, P vectors, D dimensions of embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from errata.delta.memory_delta import MemoryDelta
from errata.edit import Code, Edit, EditBatch, EditRejected, Row
from errata.edit_memory.bank import Kind, Record
from errata.edit_memory.encoder import NUM_DIMENSIONS, SentenceEncoder
from errata.edit_memory.rows import EmbeddingRows
from errata.editors.editor import check_batch
from errata.editors.memory_based.memory_editor import input_layer
from errata.editors.memory_based.questions import statement
from errata.editors.memory_based.trained import TrainedMemory
from errata.editors.state import EditorState
from errata.model.encoding import Encoded, GivenAnswer, answer_log_probs, padded
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.text.dialogue import Prompt
from errata.text.rules import fact_of


class PromptEncoder(nn.Module):
    """The heads of knowledge and queries, the sentinel, and the encoder of prompts; `hidden` is the model's D."""

    def __init__(self, num_features: int, num_vectors: int, hidden: int, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        self.hidden, self.num_vectors = hidden, num_vectors
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(NUM_DIMENSIONS, num_features), nn.Linear(num_features, num_features)
            self.query = nn.Linear(NUM_DIMENSIONS, num_features, bias=False)
            self.third, self.prompt = nn.Linear(num_features, num_features), nn.Linear(num_features, num_vectors * hidden)
            self.sentinel_R = nn.Parameter(torch.empty(num_features).uniform_(-0.05, 0.05))
        self.register_buffer("scale", torch.tensor(scale))

    def knowledge(self, text_BE: Tensor) -> Tensor:
        z_BR = self.first(text_BE * math.sqrt(NUM_DIMENSIONS))
        found_BR: Tensor = z_BR + relu(self.second(z_BR))
        return found_BR

    def keys(self, knowledge_BR: Tensor) -> Tensor:
        """Return the keys, whose product with a query's vector is s(q, k) - s(q, S), [B, E]."""
        found_BE: Tensor = (knowledge_BR - self.sentinel_R) @ self.query.weight
        return found_BE * math.sqrt(NUM_DIMENSIONS / knowledge_BR.shape[1])

    def prompts(self, knowledge_BR: Tensor) -> Tensor:
        """Return the vectors in front of a prompt, [B, P, D]."""
        y_BR = knowledge_BR + relu(self.third(knowledge_BR))
        found_BPD: Tensor = self.scale * self.prompt(y_BR).unflatten(1, (self.num_vectors, self.hidden))
        return found_BPD


@dataclass(frozen=True)
class RECIPE(TrainedMemory):
    """RECIPE. `num_features` is R and `num_vectors` P."""

    num_features: int = 256
    num_vectors: int = 3
    margin: float = 1.2

    kind: ClassVar[Kind] = "prefix"

    def network(self, hidden: int, seed: int, spread: float = 1.0) -> nn.Module:
        # A layer's outputs are smaller than its inputs, and the vectors shall be at least as large as embeddings.
        return PromptEncoder(self.num_features, self.num_vectors, hidden, seed, scale=4.0 * spread)

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
        knowledge_BR = net.knowledge(SentenceEncoder.load().encode(texts).to(model.device))
        key_BE, prompt_BPD = net.keys(knowledge_BR), net.prompts(knowledge_BR)
        records = []
        for row, text, key_1E, prompt_1PD in zip(batch.rows, texts, key_BE.split(1), prompt_BPD.split(1), strict=True):
            edit = batch.edits[row.edit]
            if not bool(torch.isfinite(key_1E).all() & torch.isfinite(prompt_1PD).all()):
                why = "the policy's numbers overflow here"
                raise EditRejected(why, edit=edit.id or row.edit, code=Code.NOT_FINITE)
            rows = {"key": key_1E.clone(), "embedding": prompt_1PD.flatten(1).clone()}
            records.append(Record(fact_of(row.prompt), text, rows, edit.subject or "", edit.id or ""))
        return MemoryDelta("prefix", input_layer(model), tuple(records)), replace(state, num_edits=state.num_edits + len(batch))

    def losses(self, model: LanguageModel, batch: Sequence[Edit], generator: torch.Generator) -> dict[str, Tensor]:
        net, encoder = self.trained_policy(), SentenceEncoder.load()
        asked = [edit.prompts[-1] for edit in batch]
        others = [edit.ask(_one_of(edit.rephrasings, generator) or edit.prompt)[-1] for edit in batch]
        rows = [Row(i, prompt, batch[i].wording(prompt)) for i, prompt in enumerate(asked)]
        knowledge_BR = net.knowledge(encoder.encode([statement(row) for row in rows]).to(model.device))
        key_BE, prompt_BPD = net.keys(knowledge_BR), net.prompts(knowledge_BR)
        probes = [(i, _one_of(edit.locality, generator)) for i, edit in enumerate(batch)]
        kept = [(i, batch[i].ask(probe.prompt)[-1], probe.target) for i, probe in probes if probe is not None]
        swapped_B = torch.randint(2, (len(batch),), generator=generator).tolist()
        pairs = [(b, a) if swap else (a, b) for a, b, swap in zip(asked, others, swapped_B, strict=True)]
        queries = [[pair[0] for pair in pairs], [pair[1] for pair in pairs], [prompt for _, prompt, _ in kept]]
        logits = [_with_sentinel(encoder.encode([_question(q) for q in each]).to(key_BE) @ key_BE.T) for each in queries]
        answers = [(i, prompt, batch[i].wording(prompt)) for prompts in (asked, others) for i, prompt in enumerate(prompts)]
        found = retrieval_losses(logits[0], logits[1], logits[2], self.margin)
        return found | self._answer_losses(model, prompt_BPD, answers, kept)

    def _answer_losses(
        self,
        model: LanguageModel,
        prompt_BPD: Tensor,
        answers: Sequence[tuple[int, Prompt, str]],
        kept: Sequence[tuple[int, Prompt, str]],
    ) -> dict[str, Tensor]:
        """Return the losses of answers and of unrelated answers, each after the vectors of the edit that is named first."""
        rendered = model.renderer.rows([(prompt, answer) for _, prompt, answer in (*answers, *kept)])
        plain = _encoded(model, rendered[len(answers) :])
        table = EmbeddingRows(model.module, prompt_BPD.flatten(0, 1))
        try:
            first = [table.vocabulary + i * self.num_vectors for i, _, _ in (*answers, *kept)]
            put = [([*range(n, n + self.num_vectors), *given], ids) for n, (given, ids) in zip(first, rendered, strict=True)]
            encoded = _encoded(model, put)
            assert encoded is not None
            log_probs_TV = answer_log_probs(model.module, encoded)
        finally:
            table.remove()
        num_answer = sum(len(ids) for _, ids in rendered[: len(answers)])
        found = {"answers": hinged(log_probs_TV[:num_answer], encoded.targets_T[:num_answer], self.margin)}
        if plain is not None:
            with torch.no_grad():
                plain_TV = answer_log_probs(model.module, plain)
            found["unrelated_kl"] = (plain_TV.exp() * (plain_TV - log_probs_TV[num_answer:])).sum(1).mean()
        return found


def retrieval_losses(own_BC: Tensor, apart_BC: Tensor, unrelated_nC: Tensor, margin: float) -> dict[str, Tensor]:
    """Return L1, L2 and L3 of logits over the records of a batch and, last, the sentinel, whose logit is 0."""
    own_B = torch.arange(len(own_BC), device=own_BC.device)
    last_B = torch.full_like(own_B, len(own_BC))
    taken_out_BC = apart_BC.masked_fill(torch.nn.functional.one_hot(own_B, apart_BC.shape[1]).bool(), -torch.inf)
    found = {
        "own": -own_BC.log_softmax(1).gather(1, own_B[:, None]).mean(),
        "sentinel": hinged(taken_out_BC.log_softmax(1), last_B, margin),
    }
    if len(unrelated_nC):
        found["unrelated"] = hinged(unrelated_nC.log_softmax(1), last_B[: len(unrelated_nC)], margin)
    return found


def hinged(log_probs_NC: Tensor, target_N: Tensor, margin: float) -> Tensor:
    """Return the mean -log p of the rows whose target is not yet more probable than every other one by a factor."""
    target_N1 = target_N[:, None]
    own_N = log_probs_NC.gather(1, target_N1)[:, 0]
    best_N = log_probs_NC.scatter(1, target_N1, -torch.inf).amax(1)
    counted_N = (own_N.detach() < best_N.detach() + math.log(margin)).to(own_N)
    return -(own_N * counted_N).sum() / counted_N.sum().clamp_min(1)


def _with_sentinel(score_nB: Tensor) -> Tensor:
    return torch.nn.functional.pad(score_nB, (0, 1))


def _question(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.question


def _encoded(model: LanguageModel, rows: Sequence[GivenAnswer]) -> Encoded | None:
    return padded(rows, model.renderer.pad_id, model.device) if rows else None


def _one_of(items: Sequence[Any], generator: torch.Generator) -> Any:
    """Draw one of the items; None if there are none."""
    return items[int(torch.randint(len(items), (), generator=generator))] if items else None
