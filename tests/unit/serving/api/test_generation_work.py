"""The work that a request for generation asks of the engine: sequences, tokens, log probabilities, structured outputs."""

from __future__ import annotations

from typing import Any

import pytest

from errata.local.service_limits import ServiceLimits
from serving.api.generation_work import GenerationWork, check_generation
from serving.api.request_body import BadRequest

LIMITS = ServiceLimits(max_request_tokens=1_000, max_logprobs=5, max_structured_bytes=100)
SCHEMA = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(10)}}


@pytest.mark.parametrize(
    ("body", "is_chat", "work"),
    [
        ({"prompt": "p"}, False, (1, 16)),
        ({"prompt": "p", "max_tokens": None}, False, (1, None)),
        ({"prompt": ["p", "q"], "n": 3, "max_tokens": 5}, False, (6, 5)),
        ({"prompt": [5, 6, 7], "n": 2}, False, (2, 16)),
        ({"prompt": [[5, 6], [7]], "n": "2"}, False, (4, 16)),
        ({"prompt": None, "prompt_embeds": ["a", "b", "c"]}, False, (3, 16)),
        ({"messages": []}, True, (1, None)),
        ({"messages": [], "n": 4, "max_completion_tokens": 7, "max_tokens": 9}, True, (4, 9)),
        ({"prompt": {}, "n": "many", "max_tokens": True}, False, (1, 0)),
        ([], False, (0, 0)),
    ],
)
def test_the_work_is_read_from_the_body(body: Any, is_chat: bool, work: tuple[int, int | None]) -> None:
    assert GenerationWork.of(body, is_chat) == GenerationWork(*work)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "p", "n": 10, "max_tokens": 100},
        {"prompt": ["p"] * 100, "max_tokens": 10},
        {"prompt": "p", "max_tokens": 1_000_000},  # One sequence, which the context bounds.
        {"prompt": "p", "logprobs": 5, "prompt_logprobs": 0, "logprob_token_ids": [1, 2]},
        {"prompt": "p", "structured_outputs": {"choice": ["a", "b"]}},
        {"prompt": "p", "logprobs": True},  # In chat, where `top_logprobs` is the number.
    ],
)
def test_work_within_the_limits_is_taken(body: dict[str, Any]) -> None:
    check_generation(body, False, LIMITS)


@pytest.mark.parametrize(
    ("body", "is_chat", "code", "setting", "field"),
    [
        ({"prompt": "p", "n": 1000, "max_tokens": 100}, False, "too_many_tokens", "max_request_tokens=1000", "n"),
        ({"prompt": "p", "n": 1000.0, "max_tokens": "100"}, False, "too_many_tokens", "max_request_tokens=1000", "n"),
        ({"prompt": ["p"] * 101, "max_tokens": 10}, False, "too_many_tokens", "max_request_tokens=1000", "n"),
        ({"messages": [], "n": 2}, True, "too_many_tokens", "max_request_tokens=1000", "max_tokens"),
        ({"prompt": "p", "logprobs": 6}, False, "too_many_logprobs", "max_logprobs=5", "logprobs"),
        ({"prompt": "p", "prompt_logprobs": -1}, False, "too_many_logprobs", "max_logprobs=5", "prompt_logprobs"),
        ({"messages": [], "top_logprobs": "6"}, True, "too_many_logprobs", "max_logprobs=5", "top_logprobs"),
        ({"prompt": "p", "logprob_token_ids": [1] * 6}, False, "too_many_logprobs", "max_logprobs=5", "logprob_token_ids"),
        *(
            ({name: value}, is_chat, "structure_too_large", "max_structured_bytes=100", name)
            for name, value, is_chat in (
                ("structured_outputs", {"grammar": "g" * 100}, False),
                ("structured_outputs", {"regex": "(a|b)" * 20}, False),
                ("structured_outputs", {"choice": ["a"] * 30}, False),
                ("structured_outputs", {"json": SCHEMA}, True),
                ("response_format", {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, True),
                ("tools", [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}], True),
            )
        ),
    ],
)
def test_more_work_is_refused_with_the_limit_and_its_setting(
    body: dict[str, Any], is_chat: bool, code: str, setting: str, field: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        check_generation(body, is_chat, LIMITS)
    answer = refused.value.refusal
    assert (answer.status, answer.code.value, answer.field) == (400, code, field) and setting in answer.message
