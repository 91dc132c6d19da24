"""The hook in front of vLLM's engine: reads each request with the memory of the served version, before the model does.

Every OpenAI handler of vLLM calls the engine's `generate`, so this is the one place. A record's text changes the prompt; a
record's answer goes along with the request, and `said_answer` makes the engine say it. What is decided for a request is kept
to its end, also over swaps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from errata.edit_memory.reader import Change
from serving.api.fired_edits import OF_REQUEST, FiredEdit, FiredEdits
from serving.engine.edit_memory.said_answer import ANSWER
from serving.engine.edit_memory.served_memory import FrontMemory
from serving.metrics import ReplicaMetrics

NUM_THREADS = 2
# Room for an answer whose length the client did not bound: OpenAI's clients do not, and vLLM then allows the whole context.
FREE_ROOM = 64


class HookedEngine:
    """vLLM's engine as its OpenAI handlers see it; everything but `generate` is the engine's own.

    `memory` returns the memory of the served version.
    """

    def __init__(self, engine: AsyncLLM, memory: Callable[[], FrontMemory], metrics: ReplicaMetrics) -> None:
        self.engine, self.memory, self.metrics = engine, memory, metrics
        self._readers = ThreadPoolExecutor(NUM_THREADS, "errata-memory")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate as the engine does. The decision begins now, so that it is made before the answer's headers are sent."""
        sampling_params.extra_args = _without_answer(sampling_params.extra_args)
        memory, request = self.memory(), OF_REQUEST.get() or FiredEdits()
        request.versions.append(memory.version)
        if not _is_read(memory, prompt, sampling_params, request):
            return self.engine.generate(prompt, sampling_params, request_id, **more)
        change = asyncio.ensure_future(self._change(memory, prompt["prompt_token_ids"], sampling_params))
        request.decisions.append(asyncio.ensure_future(_fired(change)))
        return self._generated(change, prompt, sampling_params, request_id, more)

    async def _generated(
        self,
        change: asyncio.Future[Change | None],
        prompt: Mapping[str, Any],
        sampling_params: SamplingParams,
        request_id: str,
        more: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        changed: Any = prompt
        decided = await change
        if decided is not None and decided.prompt is not None:
            changed = {**prompt, "prompt_token_ids": decided.prompt}
            changed.pop("prompt_token_offsets", None)  # They are those of the client's text, which an echo shows.
        if decided is not None and decided.answer is not None:
            sampling_params.extra_args = {**(sampling_params.extra_args or {}), ANSWER: decided.answer}
        async with aclosing(self.engine.generate(changed, sampling_params, request_id, **more)) as outputs:
            async for output in outputs:
                yield output

    async def _change(self, memory: FrontMemory, ids: Sequence[int], params: SamplingParams) -> Change | None:
        """Read a prompt in a thread, so that the streams of other requests go on meanwhile."""
        assert memory.reader is not None
        begin, room = time.perf_counter(), _room(len(ids), params.max_tokens, self.engine.model_config.max_model_len)
        change = await asyncio.get_running_loop().run_in_executor(self._readers, memory.reader.change, ids, room)
        added = 0 if change is None or change.prompt is None else len(change.prompt) - len(ids)
        self.metrics.memory_read(change is not None, time.perf_counter() - begin, added)
        return change


async def _fired(change: asyncio.Future[Change | None]) -> FiredEdit | None:
    decided = await change
    return None if decided is None else FiredEdit(decided.record.edit, decided.score)


def _without_answer(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a client's extra arguments without an answer to say: only a memory gives one."""
    return {name: value for name, value in given.items() if name != ANSWER} if given and ANSWER in given else given


def _is_read(memory: FrontMemory, prompt: Any, params: SamplingParams, request: FiredEdits) -> bool:
    """Decide whether a memory is read for a request: a prompt of tokens alone, whose client takes what the memory does."""
    if memory.reader is None or not isinstance(prompt, dict) or prompt.get("type") != "token":
        return False
    if params.prompt_logprobs is not None:  # They are asked for the client's own tokens.
        return False
    if memory.kind == "answer":
        is_free = params.structured_outputs is None and not params.logit_bias
        return request.takes_answer and is_free and not params.bad_words and params.allowed_token_ids is None
    return request.takes_text


def _room(num_prompt: int, max_tokens: int | None, context: int) -> int:
    """Return the tokens that must fit behind a prompt: those asked for, or `FREE_ROOM` if they would fill the context."""
    left = context - num_prompt
    return max_tokens if max_tokens is not None and max_tokens < left else min(left, FREE_ROOM)
