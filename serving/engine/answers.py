"""Answers of the engine to requests that do not come over HTTP, by the same handlers as those of the OpenAI routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse


async def answered(state: Any, model: str, body: Mapping[str, Any]) -> str:
    """Answer the body of a completion or of a chat; `state` is that of vLLM's application. Raises `ValueError` if refused."""
    if "messages" in body:
        chat = await state.openai_serving_chat.create_chat_completion(ChatCompletionRequest(model=model, **body))
        if not isinstance(chat, ChatCompletionResponse):
            raise ValueError(str(chat))
        return chat.choices[0].message.content or ""
    completion = await state.openai_serving_completion.create_completion(CompletionRequest(model=model, **body))
    if not isinstance(completion, CompletionResponse):
        raise ValueError(str(completion))
    return completion.choices[0].text
