"""The hook in front of vLLM's engine: reads each request with the memory of the served version, before the model does.

Every OpenAI handler of vLLM calls the engine's `generate`, so this is the one place. A record's text changes the prompt, its
embeddings go along with the prompt, and its answer with the request: `said_answer` makes the engine say it. What is decided
for a request is kept to its end, also over swaps. vLLM's prefix cache knows blocks of embeddings by their own content. Of a
memory that is read in the worker, only the names of the edits that fired pass here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, NamedTuple

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from errata.edit_memory.bank import PER_TOKEN
from errata.edit_memory.embedding_reader import EmbeddingReader
from errata.edit_memory.reader import Change, MemoryReader
from serving.api.fired_edits import OF_REQUEST, FiredEdit, FiredEdits
from serving.engine.edit_memory.fired_notes import NAME
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
        sampling_params.extra_args = _of_client(sampling_params.extra_args)
        memory, request = self.memory(), OF_REQUEST.get() or FiredEdits()
        request.versions.append(memory.version)
        if memory.kind in PER_TOKEN:
            return self._noted(request, prompt, sampling_params, request_id, more)
        if not _is_read(memory, prompt, sampling_params, request):
            return self.engine.generate(prompt, sampling_params, request_id, **more)
        reading = asyncio.ensure_future(self._read(memory, prompt, sampling_params))
        request.decisions.append(asyncio.ensure_future(_fired(reading)))
        return self._generated(reading, sampling_params, request_id, more)

    async def _generated(
        self,
        reading: asyncio.Future[_Read],
        sampling_params: SamplingParams,
        request_id: str,
        more: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        change, prompt = await reading
        if change is not None and change.answer is not None:
            sampling_params.extra_args = {**(sampling_params.extra_args or {}), ANSWER: change.answer}
        async with aclosing(self.engine.generate(prompt, sampling_params, request_id, **more)) as outputs:
            async for output in outputs:
                yield output

    async def _noted(
        self, request: FiredEdits, prompt: Any, sampling_params: SamplingParams, request_id: str, more: Mapping[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate; before the last output is passed on, ask the worker for the edits that fired."""
        name = uuid.uuid4().hex
        sampling_params.extra_args = {**(sampling_params.extra_args or {}), NAME: name}
        async with aclosing(self.engine.generate(prompt, sampling_params, request_id, **more)) as outputs:
            async for output in outputs:
                if output.finished:
                    (fired, *_) = await self.engine.collective_rpc("errata_fired", args=(name,))
                    request.noted += [FiredEdit(edit, score) for edit, score in fired]
                    self.metrics.memory_asked(bool(fired))
                yield output

    async def _read(self, memory: FrontMemory, prompt: Mapping[str, Any], params: SamplingParams) -> _Read:
        """Read a prompt in a thread, so that the streams of other requests go on meanwhile."""
        assert memory.reader is not None
        begin, length = time.perf_counter(), len(prompt["prompt_token_ids"])
        room = _room(length, params.max_tokens, self.engine.model_config.max_model_len)
        read = await asyncio.get_running_loop().run_in_executor(self._readers, _read_by, memory.reader, prompt, room)
        added = len(read.prompt["prompt_token_ids"]) - length
        self.metrics.memory_read(read.change is not None, time.perf_counter() - begin, added)
        return read


class _Read(NamedTuple):
    """The effect of a memory on a request, and the prompt that the engine reads."""

    change: Change | None
    prompt: Any


def _read_by(reader: MemoryReader | EmbeddingReader, prompt: Mapping[str, Any], room: int) -> _Read:
    change = reader.change(prompt["prompt_token_ids"], room)
    if change is None or change.prompt is None:
        return _Read(change, prompt)
    kept = {name: part for name, part in prompt.items() if name != "prompt_token_offsets"}  # Those of the client's text.
    if not isinstance(reader, EmbeddingReader):
        return _Read(change, {**kept, "prompt_token_ids": change.prompt})
    ids, is_token, embedding_LD = reader.embedded(change.prompt)
    mixed = {"type": "embeds", "prompt_embeds": embedding_LD, "prompt_token_ids": ids, "is_token_ids": is_token}
    return _Read(change, {**kept, **mixed})


async def _fired(reading: asyncio.Future[_Read]) -> list[FiredEdit]:
    change = (await reading).change
    return [] if change is None else [FiredEdit(one.record.edit, one.score) for one in change.fired]


def _of_client(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a client's extra arguments without those that only the replica gives: an answer to say, and a request's name."""
    own = {ANSWER, NAME}
    return {name: value for name, value in given.items() if name not in own} if given and own & given.keys() else given


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
