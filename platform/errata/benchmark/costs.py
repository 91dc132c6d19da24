"""Costs of an edited model: milliseconds and prompt tokens that an answer takes more, and bytes of the edits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import NamedTuple

from safetensors.torch import save

from errata.delta.kinds import Delta
from errata.model.generation import greedy_fitting
from errata.model.language_model import LanguageModel
from errata.model.prompt_hooks import prompt_hook_of
from errata.text.dialogue import Prompt


class AnswerTime(NamedTuple):
    """Milliseconds of one answer: to its first token, and in all."""

    first_ms: float
    all_ms: float


def answer_time(model: LanguageModel, prompt: Prompt, max_tokens: int) -> AnswerTime:
    """Generate one answer by itself, as a request that comes alone is answered."""
    begin, at = time.perf_counter(), list[float]()

    def note(_row: int, _ids: list[int]) -> bool:
        at.append(time.perf_counter())
        return False

    greedy_fitting(model, [prompt], max_tokens, note)
    end = time.perf_counter()
    return AnswerTime((at[0] - begin) * 1e3, (end - begin) * 1e3)


def median_added(pairs: Iterable[tuple[AnswerTime, AnswerTime]]) -> AnswerTime:
    """Return how much longer the second of two answers takes, the median over pairs."""
    more = [(after.first_ms - before.first_ms, after.all_ms - before.all_ms) for before, after in pairs]
    return AnswerTime(median(first for first, _ in more), median(whole for _, whole in more))


def added_ms(unedited: LanguageModel, edited: LanguageModel, prompts: Sequence[Prompt], max_tokens: int) -> AnswerTime:
    """Return how much longer the edited model takes, the median over prompts; both answer each prompt in turn.

    Which of the two answers first alternates, because the second one finds caches of the processor warm.
    """
    for model in (unedited, edited):
        answer_time(model, prompts[0], max_tokens)
    pairs = []
    for place, prompt in enumerate(prompts):
        if place % 2:
            before, after = (answer_time(model, prompt, max_tokens) for model in (unedited, edited))
        else:
            after, before = (answer_time(model, prompt, max_tokens) for model in (edited, unedited))
        pairs.append((before, after))
    return median_added(pairs)


def added_tokens(model: LanguageModel, prompts: Sequence[Prompt], max_tokens: int) -> float:
    """Return the mean number of tokens that are put into a prompt before the model reads it."""
    hook = prompt_hook_of(model.module)
    if hook is None:
        return 0.0
    rows = [list(model.renderer.ids(prompt)) for prompt in prompts]
    changed = hook.changed(rows, [max_tokens] * len(rows))
    return fmean(len(one.prompt) - len(ids) for one, ids in zip(changed, rows, strict=True))


def saved_bytes(delta: Delta) -> int:
    """Return the bytes of a change as a ledger keeps it, in a file."""
    return len(save(delta.to_tensors()))
