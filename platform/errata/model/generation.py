"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from errata.edit import Code, EditRejected
from errata.model.language_model import LanguageModel
from errata.model.prompt_hooks import prompt_hook_of
from errata.model.said_answers import SaidAnswers
from errata.text.dialogue import Prompt
from errata.text.rules import cleaned, is_blank, text_fault
from errata.text.sentences import first_sentence

Enough = Callable[[int, list[int]], bool]
MIN_SHARED = 8  # tokens with which all prompts begin, from which on it pays to read them once


def greedy_texts(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    max_tokens: int = 8,
    batch_size: int = 64,
    min_tokens: int = 0,
    fit_context: bool = False,
) -> list[str]:
    """Generate the greedy text after each prompt, without special tokens; see `greedy`.

    With `fit_context`, an answer ends where the model's context ends, instead of a `ValueError` for its prompt.
    """
    if not fit_context:
        rows = greedy(model, prompts, max_tokens, batch_size, min_tokens)
    else:
        rows = [_until(model.end_ids, ids) for ids in greedy_fitting(model, prompts, max_tokens)]
    return [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]


def own_answer(model: LanguageModel, prompt: Prompt, max_tokens: int = 32) -> str | None:
    """Return the first sentence that the model says after a prompt; None if it can be no target."""
    (text,) = greedy_texts(model, [prompt], max_tokens, fit_context=True)
    said = cleaned(first_sentence(text))
    return None if is_blank(said) or text_fault(said) is not None else said


def greedy_fitting(
    model: LanguageModel, prompts: Sequence[Prompt], max_tokens: int, is_enough: Enough | None = None, batch_size: int = 64
) -> list[list[int]]:
    """Generate as `greedy` does, as far as the model's context has room; an answer that ends has its end token.

    `is_enough` is given a prompt's position and the tokens so far, after each token, and ends that answer if it says so.
    """
    rows = [list(model.renderer.ids(prompt)) for prompt in prompts]
    limits = [max(1, min(max_tokens, model.max_tokens - len(ids))) for ids in rows]
    found: dict[int, list[int]] = {}
    for limit in dict.fromkeys(limits):
        chosen = [i for i, own in enumerate(limits) if own == limit]
        for begin in range(0, len(chosen), batch_size):
            part = chosen[begin : begin + batch_size]
            enough = None if is_enough is None else _Counted(is_enough, part)
            made = _generate(model, [rows[i] for i in part], limit, 0, enough)
            found |= {i: _until(model.end_ids, ids, keep=True) for i, ids in zip(part, made, strict=True)}
    return [found[i] for i in range(len(prompts))]


def greedy(
    model: LanguageModel, prompts: Sequence[Prompt], max_tokens: int = 8, batch_size: int = 64, min_tokens: int = 0
) -> list[list[int]]:
    """Generate the greedy tokens after each prompt: at most `max_tokens`, without the end token.

    The defaults of the checkpoint's generation configuration that change a greedy answer hold here as in vLLM: the end tokens
    and the repetition penalty. No end token is chosen among the first `min_tokens`. Raises `ValueError` with the prompts that
    leave less room than `max_tokens` in the model's context.
    """
    rows = [list(model.renderer.ids(prompt)) for prompt in prompts]
    limit = model.max_tokens - max_tokens
    if too_long := [str(prompt)[:40] for prompt, ids in zip(prompts, rows, strict=True) if not 0 < len(ids) <= limit]:
        raise ValueError(f"a prompt must have 1 to {limit} tokens; these do not: {too_long}")
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [ids for batch in batches for ids in _continue(model, batch, max_tokens, min_tokens)]


def continuations(model: LanguageModel, rows: Sequence[tuple[list[int], int]]) -> list[list[int]]:
    """Generate greedily after each row of tokens, as many tokens as it asks for, without the end token."""
    found: dict[int, list[int]] = {}
    for length in dict.fromkeys(length for _, length in rows):
        chosen = [i for i, (_, own) in enumerate(rows) if own == length]
        made = _continue(model, [rows[i][0] for i in chosen], length, 0) if length else [[] for _ in chosen]
        found |= dict(zip(chosen, made, strict=True))
    return [found[i] for i in range(len(rows))]


def _continue(model: LanguageModel, rows: list[list[int]], max_tokens: int, min_tokens: int) -> list[list[int]]:
    return [_until(model.end_ids, ids) for ids in _generate(model, rows, max_tokens, min_tokens)]


@torch.no_grad()
def _generate(
    model: LanguageModel, rows: list[list[int]], max_tokens: int, min_tokens: int, enough: _Counted | None = None
) -> list[list[int]]:
    """Generate greedily after each row of tokens. What follows an end token is no part of the answer."""
    module = model.module
    said: list[Sequence[int]] = []
    if (hook := prompt_hook_of(module)) is not None:
        changed = hook.changed(rows, [max_tokens] * len(rows))
        rows, said = [one.prompt for one in changed], [one.said for one in changed]
    width = max(len(ids) for ids in rows)
    shared = shared_beginning(rows)
    cache = _read_once(module, rows[0][:shared], len(rows)) if shared >= MIN_SHARED else None
    begin = rows[0][:shared] if cache is not None else []
    # Padding comes behind what is cached, because that has the same places in all rows. It repeats a token of the row:
    # a repetition penalty falls on it, and it may otherwise be an end token.
    input_ids_BS = torch.tensor([begin + ids[:1] * (width - len(ids)) + ids[len(begin) :] for ids in rows])
    seen_BS = [[1] * len(begin) + [0] * (width - len(ids)) + [1] * (len(ids) - len(begin)) for ids in rows]
    attention_mask_BS = torch.tensor(seen_BS)
    output_BS = module.generate(
        input_ids=input_ids_BS.to(module.device),
        attention_mask=attention_mask_BS.to(module.device),
        max_new_tokens=max_tokens,
        min_new_tokens=min_tokens or None,
        pad_token_id=model.tokenizer.pad_token_id or 0,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        past_key_values=cache,
        logits_processor=[SaidAnswers(said, width)] if any(said) else None,
        stopping_criteria=None if enough is None else [enough.starting_at(width)],
    )
    made = output_BS[:, width:].tolist()
    return made if enough is None else [ids[: enough.lengths.get(row)] for row, ids in enumerate(made)]


def shared_beginning(rows: Sequence[list[int]]) -> int:
    """Return how many tokens all rows begin with, such as a chat template's system prompt; each keeps one of its own."""
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)  # Of texts in order, these two differ first.
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def _read_once(module: Any, ids: list[int], num_rows: int) -> Any:
    """Read tokens and return their keys and values for so many rows; None for a model that keeps anything else.

    A sliding window or a recurrent state has no place for padding behind them.
    """
    from transformers import DynamicCache

    if not attends_to_all(module):
        return None
    cache = DynamicCache(config=module.config)
    module.base_model(input_ids=torch.tensor([ids], device=module.device), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(num_rows)
    return cache


def attends_to_all(module: Any) -> bool:
    """Say if each layer of a model attends to all tokens before: none has a window or a recurrent state."""
    from transformers import DynamicCache, DynamicLayer

    layers = DynamicCache(config=module.config).layers
    return not getattr(module, "_is_stateful", False) and all(type(layer) is DynamicLayer for layer in layers)


class _Counted:
    """A stopping criterion of transformers, by row, that notes at which length each row had enough."""

    def __init__(self, is_enough: Enough, positions: Sequence[int]) -> None:
        self.is_enough, self.positions = is_enough, positions
        self.width = 0
        self.lengths: dict[int, int] = {}

    def starting_at(self, width: int) -> _Counted:
        """Set the number of tokens before the answers."""
        self.width = width
        return self

    def __call__(self, input_ids_BS: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        for row, ids in enumerate(input_ids_BS[:, self.width :].tolist()):
            if row not in self.lengths and self.is_enough(self.positions[row], ids):
                self.lengths[row] = len(ids)
        return torch.tensor([row in self.lengths for row in range(len(input_ids_BS))], device=input_ids_BS.device)


def _until(ends: Collection[int], ids: list[int], keep: bool = False) -> list[int]:
    """Cut tokens before the first end token or, with `keep`, after it."""
    return ids[: next((i + keep for i, token in enumerate(ids) if token in ends), len(ids))]


def check_question(prompt: Prompt, max_tokens: int, model: LanguageModel) -> None:
    """Raise `EditRejected` if the prompt is empty or no text, or leaves less room than `max_tokens` in the model's context."""
    if is_blank(str(prompt)):
        raise EditRejected("is empty; give the text", field="prompt", code=Code.EMPTY_FIELD)
    if (fault := text_fault(str(prompt))) is not None:
        raise EditRejected(fault, field="prompt", code=Code.NOT_TEXT)
    if max_tokens < 1:
        raise EditRejected(f"an answer has at least one token, not {max_tokens}", field="max_tokens", code=Code.INVALID_VALUE)
    if (length := len(model.renderer.ids(prompt))) + max_tokens > model.max_tokens:
        why = f"has {length} tokens, and with an answer of {max_tokens} does not fit the model's context of {model.max_tokens}"
        raise EditRejected(why, field="prompt", code=Code.TOO_LONG)
