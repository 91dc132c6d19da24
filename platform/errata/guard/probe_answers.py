"""Answers of the model to the guard's probes, and the passes that score answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from errata.delta.kinds import Delta
from errata.delta.side_branch import applied
from errata.guard.probes import Probes
from errata.model.encoding import IGNORED, Encoded, answer_log_probs, answer_nll, at_answers, split
from errata.model.generation import greedy
from errata.model.language_model import LanguageModel
from errata.model.packing import packed
from errata.model.prefix_cache import PrefixCache, UnreadOutput
from errata.model.prompt_hooks import prompt_hook_of
from errata.text.answers import Question, first_sentence
from errata.text.dialogue import Dialogue, Prompt

MAX_ANSWER_TOKENS = 8
MAX_SENTENCE_TOKENS = 64
NUM_WATCHED = 8  # Texts of which the gradient is taken.


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
    questions: tuple[Prompt, ...]

    @classmethod
    def of(cls, model: LanguageModel, probes: Probes) -> ProbeTexts | None:
        """Answer the questions with the unedited model, and tokenise all probes; None if there are none.

        A model with a chat template is asked in chat, as its users ask it.

        Raises `ValueError` naming a probe that is too long for the context, or too short for a perplexity.
        """
        if not probes.questions and not probes.sentences:
            return None
        tokenizer = model.tokenizer
        in_chat = model.renderer.form == "chat"
        questions = tuple(Dialogue.of(text) if in_chat else text for text in probes.questions)
        answers = greedy(model, questions, MAX_ANSWER_TOKENS) if questions else []
        rows = []
        for prompt, ids in zip(questions, answers, strict=True):
            rows.append((list(model.renderer.ids(prompt)), _first_sentence(tokenizer, ids)))
        for sentence in probes.sentences:
            ids = tokenizer(sentence, truncation=True, max_length=min(MAX_SENTENCE_TOKENS, model.max_tokens))["input_ids"]
            if len(ids) < 2:
                raise ValueError(f"a sentence needs two tokens to have a perplexity, but the probe {sentence!r} has {len(ids)}")
            rows.append((ids[:1], ids[1:]))
        return cls(packed(model, rows), questions)


def _first_sentence(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return an answer's tokens up to the end of its first sentence, otherwise all of them with the end token if it ended."""
    whole = first_sentence(tokenizer.decode(ids, skip_special_tokens=True))
    for count in range(1, len(ids)):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        if first_sentence(text) == whole and text.strip() != whole:
            return ids[:count]
    has_ended = len(ids) < MAX_ANSWER_TOKENS and tokenizer.eos_token_id is not None
    return [*ids, tokenizer.eos_token_id] if has_ended else ids


def is_decided(model: LanguageModel, question: Question, ids: Sequence[int]) -> bool:
    """Say if the first sentence of an answer has ended, so that what follows decides nothing."""
    text = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return all(first_sentence(text, one) != text for one in (question.answer, *question.targets))


def deciding_tokens(model: LanguageModel, question: Question, ids: Sequence[int]) -> tuple[int, ...]:
    """Return an answer's tokens up to the one after the end of its first sentence, or all of them."""
    decided = [is_decided(model, question, ids[:count]) for count in range(1, len(ids) + 1)]
    return tuple(ids[: next((i + 2 for i, pair in enumerate(pairwise(decided)) if all(pair)), len(ids))])


class AnswerPasses:
    """Forward passes for the log probabilities of answers, which compute no more than these depend on.

    A prefix cache replays the activations before the edited modules. If the rest of the model is pointwise, as it is after
    the last attention layer, a text's second pass runs it at the answer positions only. `is_pointwise` is None before the
    first text.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.is_pointwise: bool | None = None

    def log_probs(self, cache: PrefixCache, text: Encoded, delta: Delta) -> Tensor:
        """Return log p at the answer positions of `text`, [T, V], of the model with `delta`."""
        with applied(self.module, delta):
            if prompt_hook_of(self.module) is not None:  # The cache is of the shorter prompts.
                return answer_log_probs(self.module, text)
        if self.is_pointwise is None:
            self.is_pointwise = self.rest_is_pointwise(cache, text)
        if self.is_pointwise and cache.has(text):
            text = self.answer_positions_only(cache, text)
        with cache.reusing(text), applied(self.module, delta):
            return answer_log_probs(self.module, text)

    def rest_is_pointwise(self, cache: PrefixCache, text: Encoded) -> bool:
        """Return True if a prediction depends on the cached and the changing modules at its own position only.

        Found from the gradient of the prediction at the last answer position of some rows, since it is the model's property and
        not the text's. `cache` is not changed.
        """
        is_answer_BS = text.labels_BS != IGNORED
        is_last_BS = is_answer_BS & (is_answer_BS.cumsum(1) == is_answer_BS.sum(1, keepdim=True))
        whole = replace(text, labels_BS=text.labels_BS.masked_fill(~is_last_BS, IGNORED))
        # The first position of a text has no other position to depend on.
        num_rows = max(1, NUM_WATCHED * len(text.input_ids_BS) // len(text.answer_lengths))
        last = next((rows for rows in split(whole, num_rows) if rows.predicts_BS[:, 1:].any()), None)
        if last is None:
            return False
        cache, given = cache.empty_copy(), list[Tensor]()
        with torch.no_grad(), cache.reusing(last):
            answer_log_probs(self.module, last)
        watched = cache.derive(last, replace(last), lambda one: _with_gradient(one, given))

        handles = [
            module.register_forward_hook(lambda _m, _a, output: _with_gradient(output, given)) for module in cache.changing
        ]
        try:
            with torch.enable_grad(), cache.reusing(watched):
                loss = answer_nll(answer_log_probs(self.module, watched), watched).sum()
        finally:
            for handle in handles:
                handle.remove()
        grads = torch.autograd.grad(loss, given, allow_unused=True)
        return not any(grad is not None and _reaches_others(grad, last) for grad in grads)

    def answer_positions_only(self, cache: PrefixCache, text: Encoded) -> Encoded:
        """Return the answer positions of `text` as one row, for which `cache` then replays the outputs at these positions.

        It gives the log probabilities of `text`, which must be cached, if the rest of the model is pointwise.
        """
        if id(text) not in cache.derived:
            row_1T = at_answers(text.input_ids_BS[..., None], text).T
            # The labels are one longer, so that every position predicts.
            labels_BS = nn.functional.pad(text.targets_T[None], (1, 0), value=IGNORED)
            short = Encoded(row_1T, torch.ones_like(row_1T), labels_BS)
            cache.derive(text, short, lambda one: _at_answers(one, text))
        return cache.derived[id(text)]


def _with_gradient(one: Any, given: list[Tensor]) -> Any:
    """Return a tensor as one that takes a gradient, and add it to `given`; return anything else as it is."""
    if not isinstance(one, Tensor) or not one.is_floating_point():
        return one
    given.append(one if one.requires_grad else one.detach().requires_grad_())
    return given[-1]


def _reaches_others(grad: Tensor, text: Encoded) -> bool:
    """Return True if a gradient is not zero at a position that predicts no answer, or has no positions."""
    if grad.shape[:2] == text.predicts_BS.shape:
        grad = grad[~text.predicts_BS.to(grad.device)]
    return bool(grad.any())


def _at_answers(one: Any, text: Encoded) -> Any:
    """Return the rows of a cached tensor at the answer positions of `text`, [1, T, ...]; anything else as it is."""
    num_rows, width = text.input_ids_BS.shape
    if isinstance(one, UnreadOutput):
        return replace(one, shape=torch.Size((1, len(text.predicts_T), *one.shape[2:])))
    if not isinstance(one, Tensor) or one.ndim < 2 or one.shape[0] not in (1, num_rows) or one.shape[1] != width:
        return one
    return at_answers(one.expand(num_rows, *one.shape[1:]), text)[None]


def by_text(encoded: Encoded, values_T: Tensor) -> tuple[Tensor, ...]:
    """Split values of the T answer tokens by the texts of the batch."""
    return values_T.split(encoded.answer_lengths)
