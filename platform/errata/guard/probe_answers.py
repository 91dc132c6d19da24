"""Answers of the model to the guard's probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from errata.evaluate.answers import first_sentence
from errata.guard.probes import Probes
from errata.model.encoding import Encoded, padded
from errata.model.generation import greedy
from errata.model.language_model import LanguageModel

MAX_ANSWER_TOKENS = 8
MAX_SENTENCE_TOKENS = 64


@dataclass(frozen=True)
class ProbeAnswers:
    """The model's answers to the probes: the argmax tokens over each question's answer, and the perplexity of each sentence."""

    said: list[list[int]]
    perplexities: list[float]
    is_finite: bool

    def same_as(self, base: ProbeAnswers) -> list[bool]:
        """Compare the answer to each question with that of the unedited model."""
        return [now == then for now, then in zip(self.said, base.said, strict=True)]

    def ratios_to(self, base: ProbeAnswers) -> list[float]:
        """Divide the perplexity of each sentence by that of the unedited model."""
        return [now / then for now, then in zip(self.perplexities, base.perplexities, strict=True)]


@dataclass(frozen=True)
class ProbeTexts:
    """The probes as one batch of tokens: questions with the unedited model's answers, then sentences."""

    encoded: Encoded
    questions: tuple[str, ...]

    @classmethod
    def of(cls, model: LanguageModel, probes: Probes) -> ProbeTexts | None:
        """Answer the questions with the unedited model, and tokenise all probes; None if there are none.

        Raises `ValueError` naming a probe that is too long for the context, or too short for a perplexity.
        """
        if not probes.questions and not probes.sentences:
            return None
        tokenizer = model.tokenizer
        answers = greedy(model, probes.questions, MAX_ANSWER_TOKENS) if probes.questions else []
        rows = []
        for prompt, ids in zip(probes.questions, answers, strict=True):
            rows.append((list(tokenizer(prompt)["input_ids"]), _first_sentence(tokenizer, ids)))
        for sentence in probes.sentences:
            ids = tokenizer(sentence, truncation=True, max_length=min(MAX_SENTENCE_TOKENS, model.max_tokens))["input_ids"]
            if len(ids) < 2:
                raise ValueError(f"a sentence needs two tokens to have a perplexity, but the probe {sentence!r} has {len(ids)}")
            rows.append((ids[:1], ids[1:]))
        return cls(padded(rows, tokenizer.pad_token_id or 0, model.device), probes.questions)


def _first_sentence(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return an answer's tokens up to the end of its first sentence, otherwise all of them with the end token if it ended."""
    whole = first_sentence(tokenizer.decode(ids, skip_special_tokens=True))
    for count in range(1, len(ids)):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        if first_sentence(text) == whole and text.strip() != whole:
            return ids[:count]
    has_ended = len(ids) < MAX_ANSWER_TOKENS and tokenizer.eos_token_id is not None
    return [*ids, tokenizer.eos_token_id] if has_ended else ids


def by_row(encoded: Encoded, values_T: Tensor) -> tuple[Tensor, ...]:
    """Split values of the T answer tokens by the rows of the batch."""
    return values_T.split(encoded.predicts_BS.sum(1).tolist())
