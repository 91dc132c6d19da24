"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from errata.edit import Code, EditRejected
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Prompt
from errata.text.rules import is_blank


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
    limits = [max_tokens] * len(prompts)
    if fit_context:
        rooms = [model.max_tokens - len(model.renderer.ids(prompt)) for prompt in prompts]
        limits = [max(1, min(max_tokens, room)) for room in rooms]
    texts: dict[int, str] = {}
    for limit in dict.fromkeys(limits):
        chosen = [i for i, own in enumerate(limits) if own == limit]
        rows = greedy(model, [prompts[i] for i in chosen], limit, batch_size, min_tokens)
        texts |= {i: model.tokenizer.decode(ids, skip_special_tokens=True) for i, ids in zip(chosen, rows, strict=True)}
    return [texts[i] for i in range(len(prompts))]


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


@torch.no_grad()
def _continue(model: LanguageModel, rows: list[list[int]], max_tokens: int, min_tokens: int) -> list[list[int]]:
    module, tokenizer = model.module, model.tokenizer
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
    return [_until(model.end_ids, ids) for ids in output_BS[:, width:].tolist()]


def _until(ends: Collection[int], ids: list[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def check_question(prompt: Prompt, max_tokens: int, model: LanguageModel) -> None:
    """Raise `EditRejected` if the prompt is empty, or leaves less room than `max_tokens` in the model's context."""
    if is_blank(str(prompt)):
        raise EditRejected("is empty; give the text", field="prompt", code=Code.EMPTY_FIELD)
    if max_tokens < 1:
        raise EditRejected(f"an answer has at least one token, not {max_tokens}", field="max_tokens", code=Code.INVALID_VALUE)
    if (length := len(model.renderer.ids(prompt))) + max_tokens > model.max_tokens:
        why = f"has {length} tokens, and with an answer of {max_tokens} does not fit the model's context of {model.max_tokens}"
        raise EditRejected(why, field="prompt", code=Code.TOO_LONG)
