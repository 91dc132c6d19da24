"""The texts of one edit batch of an episode: what the editor sees, what its edits should change, and what they must not.

Every second dialogue is put into another context. The loss on locality texts is measured against the base model's
log-probabilities, which are computed once. T answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from errata.edit import EditBatch
from errata.editors.hypernet.reward import MemoryOptions
from errata.model.encoding import Encoded, answer_log_probs, encode, split
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Prompt, in_contexts


class EpisodeBatch:
    """One edit batch of an episode, tokenised on first use: edit texts, in-scope texts and locality texts.

    `base_log_probs` must first be called while `model` is the base model, without side branches.
    """

    def __init__(
        self, model: LanguageModel, batch: EditBatch, score_prompts: bool = True, savings: MemoryOptions | None = None
    ) -> None:
        self.model, self.batch, self.score_prompts, self.savings = model, batch, score_prompts, savings or MemoryOptions()
        self._base_log_probs: dict[int, Tensor] = {}

    @cached_property
    def keys(self) -> frozenset[Hashable]:
        """Keys of the edits' prompts."""
        return frozenset(key for edit in self.batch for key in edit.keys)

    def without(self, keys: frozenset[Hashable]) -> EpisodeBatch:
        """Return the batch without the edits that have one of these keys; itself if there are none."""
        if self.keys.isdisjoint(keys):
            return self
        left = EditBatch(tuple(edit for edit in self.batch if edit.keys.isdisjoint(keys)))
        return EpisodeBatch(self.model, left, self.score_prompts, self.savings)

    def _encode(self, pairs: Sequence[tuple[Prompt, str]]) -> Encoded:
        return encode(self.model.renderer, [p for p, _ in pairs], [t for _, t in pairs], self.model.device)

    @cached_property
    def edit_texts(self) -> Encoded:
        """The prompts with their targets: what the editor sees."""
        return self._encode([(row.prompt, row.answer) for row in self.batch.rows])

    @cached_property
    def edit_text_parts(self) -> list[Encoded]:
        return self._split(self.edit_texts)

    @cached_property
    def in_scope_texts(self) -> Encoded:
        """The prompts and rephrasings with their targets: what the edits should change."""
        texts = [
            (edit, text)
            for edit in self.batch
            for text in ((edit.prompt, *edit.rephrasings) if self.score_prompts or not edit.rephrasings else edit.rephrasings)
        ]
        return self._encode(
            [
                (p, edit.wording(p))
                for i, (edit, text) in enumerate(texts)
                for p in (_in_context(asked, i) for asked in edit.ask(text))
            ]
        )

    @cached_property
    def locality_texts(self) -> Encoded | None:
        """The locality probes with the base model's answers: what the edits must not change. None without probes."""
        probes = [(p, probe.target) for edit in self.batch for probe in edit.locality for p in edit.ask(probe.prompt)]
        return self._encode(probes) if probes else None

    @cached_property
    def portability_texts(self) -> Encoded | None:
        """The consequences of the edits with the answers that follow from them. None without probes."""
        probes = [(p, probe.wording(p)) for edit in self.batch for probe in edit.portability for p in edit.ask(probe.prompt)]
        return self._encode(probes) if probes else None

    @cached_property
    def in_scope_parts(self) -> list[Encoded]:
        return self._split(self.in_scope_texts)

    @cached_property
    def locality_parts(self) -> list[Encoded]:
        return self._split(self.locality_texts) if self.locality_texts is not None else []

    @cached_property
    def portability_parts(self) -> list[Encoded]:
        return self._split(self.portability_texts) if self.portability_texts is not None else []

    @property
    def scored_parts(self) -> list[Encoded]:
        """All texts that a step may be scored on."""
        return [*self.in_scope_parts, *self.locality_parts, *self.portability_parts]

    def _split(self, text: Encoded) -> list[Encoded]:
        return split(text, self.savings.micro_batch)

    @torch.no_grad()
    def base_log_probs(self, index: int) -> Tensor:
        """Return the base model's log-probabilities [T, V] at the answers of one part of the locality texts."""
        if index not in self._base_log_probs:
            log_probs_TV = answer_log_probs(self.model.module, self.locality_parts[index])
            self._base_log_probs[index] = log_probs_TV.cpu() if self.savings.on_host else log_probs_TV
        return self._base_log_probs[index]

    def forget(self) -> None:
        """Free the base model's log-probabilities, once the batch is not scored again."""
        self._base_log_probs.clear()


def _in_context(prompt: Prompt, index: int) -> Prompt:
    """Return every second dialogue under another system prompt or as a later turn, and other prompts as they are."""
    if isinstance(prompt, str) or index % 2 == 0:
        return prompt
    return in_contexts(prompt, 2, offset=index // 2)[1]
