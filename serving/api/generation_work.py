"""The work that a request for generation asks of the engine, and its limits.

A few bytes can ask for hours: `n` answers to each of many prompts, log probabilities of the whole vocabulary, or a grammar
whose compilation holds the engine. vLLM bounds some of these by more than a shared engine can bear, so they are refused here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from errata.local.service_limits import ServiceLimits
from serving.api.codes import RequestCode
from serving.api.request_body import BadRequest

_LOGPROBS = ("logprobs", "top_logprobs", "prompt_logprobs")
_LOGPROB_LISTS = ("logprob_token_ids",)
_STRUCTURED = ("structured_outputs", "response_format", "tools")
_MAX_TOKENS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class GenerationWork:
    """`sequences` of at most `tokens` tokens each; None if the model's context alone bounds them."""

    sequences: int
    tokens: int | None

    @classmethod
    def of(cls, body: Any, is_chat: bool) -> GenerationWork:
        """Read a body, as far as it is one; vLLM refuses fields of a wrong type."""
        if not isinstance(body, Mapping):
            return cls(0, 0)
        prompts = 1 if is_chat else _num_prompts(body.get("prompt")) + _num_prompts(body.get("prompt_embeds"))
        each = max(1, *(_whole(body.get(name)) for name in ("n", "best_of")))
        given = [_whole(body.get(name)) for name in _MAX_TOKENS if body.get(name) is not None]
        default = None if is_chat or "max_tokens" in body else 16  # vLLM's default for completions.
        return cls(max(1, prompts) * each, max(given) if given else default)


def check_generation(body: Any, is_chat: bool, limits: ServiceLimits) -> GenerationWork:
    """Return the work of a request for generation. Raises `BadRequest` beyond the limits.

    A single sequence without a bound of its own is bounded by the model's context, and so is always taken.
    """
    work = GenerationWork.of(body, is_chat)
    if isinstance(body, Mapping):
        _check_tokens(work, limits)
        _check_logprobs(body, limits)
        _check_structured(body, limits)
    return work


def _check_tokens(work: GenerationWork, limits: ServiceLimits) -> None:
    limit, setting = limits.max_request_tokens, f"max_request_tokens={limits.max_request_tokens}"
    if work.sequences == 1:
        return
    if work.tokens is None:
        message = f"{work.sequences:,} sequences without max_tokens may be longer together than {limit:,} tokens ({setting})"
        raise BadRequest(400, RequestCode.TOO_MANY_TOKENS, f"{message}; give max_tokens", "max_tokens")
    if work.sequences * work.tokens > limit:
        message = f"{work.sequences:,} sequences of {work.tokens:,} tokens are more than {limit:,} tokens ({setting})"
        raise BadRequest(400, RequestCode.TOO_MANY_TOKENS, f"{message}; send fewer prompts, or a smaller n or max_tokens", "n")


def _check_logprobs(body: Mapping[str, Any], limits: ServiceLimits) -> None:
    limit = limits.max_logprobs
    for name in _LOGPROBS:
        value = _whole(body.get(name))
        if value > limit or value < 0:  # -1 stands for the whole vocabulary.
            message = f"{name} is {value}, and a token may have 0 to {limit} log probabilities (max_logprobs={limit})"
            raise BadRequest(400, RequestCode.TOO_MANY_LOGPROBS, message, name)
    for name in _LOGPROB_LISTS:
        if isinstance(chosen := body.get(name), list) and len(chosen) > limit:
            message = f"{name} has {len(chosen):,} tokens, and may have {limit} (max_logprobs={limit})"
            raise BadRequest(400, RequestCode.TOO_MANY_LOGPROBS, message, name)


def _check_structured(body: Mapping[str, Any], limits: ServiceLimits) -> None:
    limit = limits.max_structured_bytes
    for name in _STRUCTURED:
        if body.get(name) is not None and (size := len(json.dumps(body[name]))) > limit:
            what = f"{name} has {size:,} bytes as JSON, and a grammar, choice, schema or regular expression may have {limit:,}"
            message = f"{what} (max_structured_bytes={limit}); constrain less, or check the answer instead"
            raise BadRequest(400, RequestCode.STRUCTURE_TOO_LARGE, message, name)


def _num_prompts(prompt: Any) -> int:
    """Count the prompts: a text, a list of tokens, or a list of either; no more than 0 of anything else."""
    if isinstance(prompt, list):
        return 1 if prompt and isinstance(prompt[0], int) else len(prompt)
    return int(isinstance(prompt, str))


def _whole(value: Any) -> int:
    """Read a number as pydantic would, which takes whole floats and texts of digits, too; 0 for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}\s*", value, re.ASCII):
        return int(value)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0
