"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from errata.edit import Code, EditRejected
from errata.model.language_model import LanguageModel


def greedy(
    language_model: LanguageModel, prompts: Sequence[str], max_tokens: int = 8, batch_size: int = 64, min_tokens: int = 0
) -> list[list[int]]:
    """The greedy tokens after each prompt, at most `max_tokens`, without the end-of-text token.

    Before `min_tokens` of them the end-of-text token is never chosen, however likely. Raises `ValueError` naming the prompts
    that leave no room for them in the model's context.
    """
    rows = [list(language_model.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    limit = language_model.max_tokens - max_tokens
    if too_long := [prompt[:40] for prompt, ids in zip(prompts, rows, strict=True) if not 0 < len(ids) <= limit]:
        raise ValueError(f"a prompt must have 1 to {limit} tokens; these do not: {too_long}")
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [ids for batch in batches for ids in _continue(language_model, batch, max_tokens, min_tokens)]


@torch.no_grad()
def _continue(language_model: LanguageModel, rows: list[list[int]], max_tokens: int, min_tokens: int) -> list[list[int]]:
    module, tokenizer = language_model.module, language_model.tokenizer
    width = max(len(ids) for ids in rows)
    pad = tokenizer.pad_token_id or 0
    input_ids_BS = torch.tensor([[pad] * (width - len(ids)) + ids for ids in rows])
    attention_mask_BS = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])
    output_BS = module.generate(
        input_ids=input_ids_BS.to(module.device),
        attention_mask=attention_mask_BS.to(module.device),
        max_new_tokens=max_tokens,
        min_new_tokens=min_tokens or None,
        pad_token_id=pad,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    ends = end_tokens(language_model)
    return [_until(ends, ids) for ids in output_BS[:, width:].tolist()]


def end_tokens(language_model: LanguageModel) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and those that the model's configuration names."""
    configured = language_model.module.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return {token for token in (*configured, language_model.tokenizer.eos_token_id) if token is not None}


def _until(ends: set[int], ids: list[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def answered(model: LanguageModel, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """What the model says to each prompt, greedily: at most `max_tokens` tokens, fewer where the context ends."""
    by_room: dict[int, list[str]] = {}
    for prompt in prompts:
        room = model.max_tokens - len(model.tokenizer(prompt)["input_ids"])
        by_room.setdefault(max(1, min(max_tokens, room)), []).append(prompt)
    said: dict[str, str] = {}
    for room, group in by_room.items():
        texts = (model.tokenizer.decode(ids, skip_special_tokens=True) for ids in greedy(model, group, room))
        said |= dict(zip(group, (text.strip() for text in texts), strict=True))
    return [said[prompt] for prompt in prompts]


def check_question(prompt: str, max_tokens: int, model: LanguageModel) -> None:
    """Raise `EditRejected` if the prompt is empty, or an answer of `max_tokens` tokens does not fit behind it."""
    if not prompt.strip():
        raise EditRejected("is empty; give the text", field="prompt", code=Code.EMPTY_FIELD)
    if max_tokens < 1:
        raise EditRejected(f"an answer has at least one token, not {max_tokens}", field="max_tokens", code=Code.INVALID_VALUE)
    if (length := len(model.tokenizer(prompt)["input_ids"])) + max_tokens > model.max_tokens:
        why = f"has {length} tokens, and with an answer of {max_tokens} does not fit the model's context of {model.max_tokens}"
        raise EditRejected(why, field="prompt", code=Code.TOO_LONG)


def answers(model: LanguageModel, prompts: Sequence[str], max_tokens: int, min_tokens: int = 0) -> dict[str, str]:
    """The greedy text after each prompt."""
    ids = greedy(model, prompts, max_tokens, min_tokens=min_tokens)
    return {prompt: model.tokenizer.decode(row, skip_special_tokens=True) for prompt, row in zip(prompts, ids, strict=True)}
