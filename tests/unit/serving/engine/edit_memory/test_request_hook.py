"""Requests that are read with a memory in front of the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from errata.edit_memory.bank import Bank, Kind, Record
from errata.edit_memory.embedding_reader import EmbeddingSizes, RowsReader
from serving.api.fired_edits import OF_REQUEST, FiredEdits
from serving.metrics import ReplicaMetrics
from tests.unit.serving.engine.edit_memory.records import FrontMemory, a_memory
from tests.unit.serving.test_metrics import value

vllm = pytest.importorskip("vllm")
request_hook = pytest.importorskip("serving.engine.edit_memory.request_hook")

ASKED = [5, 6, 7]
CONTEXT = 40


class Output(str):
    """An output; the second one is the last."""

    @property
    def finished(self) -> bool:
        return self == "two"


class Engine:
    """vLLM's engine: records what it is asked, and answers with two outputs; `closed` counts answers that were left."""

    model_config = SimpleNamespace(max_model_len=CONTEXT)
    errored = False

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any, str, dict[str, Any]]] = []
        self.closed = 0

    async def collective_rpc(self, method: str, args: tuple[str]) -> list[list[tuple[str, float]]]:
        assert method == "errata_fired"
        (self.name,) = args
        return [[("edit-a", 0.97)]]

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **more: Any) -> AsyncIterator[str]:
        self.asked.append((prompt, sampling_params, request_id, more))
        try:
            yield Output("one")
            yield Output("two")
        finally:
            self.closed += 1


class Hook:
    """A hook over a fake engine and one memory, which a test replaces as a swap does."""

    def __init__(self, memory: FrontMemory) -> None:
        self.memory, self.engine, self.metrics = memory, Engine(), ReplicaMetrics()
        self.hook = request_hook.HookedEngine(self.engine, lambda: self.memory, self.metrics)

    async def ask(self, ids: Any = ASKED, request: FiredEdits | None = None, **sampling: Any) -> tuple[Any, Any]:
        """Ask as a handler of vLLM does; returns the prompt and the sampling parameters that the engine got."""
        token = OF_REQUEST.set(request)
        prompt = (
            ids if isinstance(ids, dict) else {"type": "token", "prompt_token_ids": ids, "cache_salt": "salt", "prompt": "text"}
        )
        params = vllm.SamplingParams(**{"max_tokens": 4, **sampling})
        outputs = [one async for one in self.hook.generate(prompt, params, "id", priority=3)]
        OF_REQUEST.reset(token)
        asked, params, request_id, more = self.engine.asked[-1]
        assert outputs == ["one", "two"] and request_id == "id" and more == {"priority": 3}
        return asked, params

    def metric(self, name: str, **labels: str) -> float | None:
        return value(self.metrics.exposition(), f"errata_memory_{name}", **labels)


def changed(kind: Kind = "answer") -> FrontMemory:
    return a_memory(kind, changes={tuple(ASKED): ([1, 2, *ASKED], None) if kind == "text" else (None, [8, 9])})


def test_a_text_changes_the_prompt_and_nothing_else_of_the_request() -> None:
    async def asked() -> None:
        hook = Hook(changed("text"))
        prompt, params = await hook.ask()
        assert prompt == {"type": "token", "prompt_token_ids": [1, 2, *ASKED], "cache_salt": "salt", "prompt": "text"}
        assert params.extra_args is None
        assert (await hook.ask([5]))[0]["prompt_token_ids"] == [5]
        assert [hook.metric("lookups_total", result=result) for result in ("hit", "miss")] == [1, 1]
        assert hook.metric("prompt_tokens_total") == 2 and hook.metric("lookup_seconds_count") == 2

    asyncio.run(asked())


def test_embeddings_go_along_with_the_prompt_whose_tokens_they_replace() -> None:
    async def asked() -> None:
        rows = {"id": torch.tensor([6, 7]), "begins": torch.tensor([1, 0]), "number": torch.tensor([0, 0])}
        rows["embedding"] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        bank = Bank("rows", "embed").changed([Record('"a"', "a", rows, edit="edit-a")], ())
        hook, request = Hook(FrontMemory(7, bank, RowsReader(bank, EmbeddingSizes(50, 2, CONTEXT)))), FiredEdits()
        prompt, params = await hook.ask(request=request)
        assert torch.equal(prompt.pop("prompt_embeds"), torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]))
        own = {"type": "embeds", "prompt_token_ids": ASKED, "is_token_ids": [True, False, False]}
        assert prompt == {"cache_salt": "salt", "prompt": "text", **own} and params.extra_args is None
        assert [(edit.id, edit.score) for edit in await request.edits()] == [("edit-a", 1.0)]
        plain, _ = await hook.ask([5, 7, 6])
        assert plain["type"] == "token" and hook.metric("prompt_tokens_total") == 0
        left, _ = await hook.ask(prompt_logprobs=1)
        assert left["type"] == "token", "they are asked for the client's own tokens"

    asyncio.run(asked())


def test_an_answer_goes_along_with_the_request_and_leaves_the_prompt() -> None:
    async def asked() -> None:
        hook = Hook(changed())
        shared = {"own": 1}  # vLLM gives all prompts of a body one dictionary.
        prompt, params = await hook.ask(extra_args=shared)
        assert prompt["prompt_token_ids"] == ASKED
        assert params.extra_args == {"own": 1, "errata_answer": [8, 9]} and shared == {"own": 1}
        assert (await hook.ask([5], extra_args=shared))[1].extra_args == shared

    asyncio.run(asked())


def test_no_client_makes_the_engine_say_an_answer() -> None:
    async def asked() -> None:
        for memory in (FrontMemory(), changed()):
            hook = Hook(memory)
            _, params = await hook.ask([5], extra_args={"errata_answer": "x", "own": 1})
            assert params.extra_args == {"own": 1}

    asyncio.run(asked())


def test_the_edits_that_fired_are_known_before_the_answer_begins() -> None:
    async def asked() -> None:
        hook, request = Hook(changed()), FiredEdits()
        OF_REQUEST.set(request)
        prompts = [{"type": "token", "prompt_token_ids": ids} for ids in (ASKED, [5], ASKED)]
        answers = [hook.hook.generate(prompt, vllm.SamplingParams(), "id") for prompt in prompts]
        assert [(edit.id, edit.score) for edit in await request.edits()] == [("edit-a", 0.925)] * 2
        assert request.versions == [7] * 3
        assert hook.engine.asked == [], "the engine is asked when the answer is read"
        for answer in answers:
            await answer.aclose()

    asyncio.run(asked())


def test_the_worker_says_what_fired_before_the_last_output_is_passed_on() -> None:
    async def asked() -> None:
        hook, request = Hook(a_memory("state")), FiredEdits()
        OF_REQUEST.set(request)
        prompt = {"type": "token", "prompt_token_ids": ASKED}
        extra = {"own": 1, "errata_request": "forged"}
        params = vllm.SamplingParams(extra_args=extra)
        seen = []
        async for output in hook.hook.generate(prompt, params, "id"):
            seen.append((output, [(edit.id, edit.score) for edit in request.take_noted()]))
        assert seen == [("one", []), ("two", [("edit-a", 0.97)])]
        read, given, *_ = hook.engine.asked[-1]
        assert read is prompt and given.extra_args == {"own": 1, "errata_request": hook.engine.name} != extra
        counts = [hook.metric("lookups_total", result=result) for result in ("hit", "miss")]
        assert counts == [1, 0] and hook.metric("lookup_seconds_count") == 0

    asyncio.run(asked())


REFUSED_ANSWER: list[dict[str, Any]] = [
    {"structured_outputs": "regex"},
    {"logit_bias": {3: 1.0}},
    {"bad_words": ["x"]},
    {"allowed_token_ids": [1]},
    {"prompt_logprobs": 1},
]


@pytest.mark.parametrize("sampling", REFUSED_ANSWER, ids=lambda sampling: next(iter(sampling)))
def test_a_request_that_an_answer_would_break_is_left_as_it_is(sampling: dict[str, Any]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    is_text_used = "prompt_logprobs" not in sampling
    if "structured_outputs" in sampling:
        sampling = {"structured_outputs": StructuredOutputsParams(regex="[a-z]")}

    async def asked() -> None:
        hook, request = Hook(changed()), FiredEdits()
        prompt, params = await hook.ask(request=request, **sampling)
        assert prompt["prompt_token_ids"] == ASKED and params.extra_args is None
        assert await request.edits() == [] and hook.metric("lookups_total", result="hit") == 0
        prompt, _ = await Hook(changed("text")).ask(**sampling)
        assert (prompt["prompt_token_ids"] != ASKED) == is_text_used

    asyncio.run(asked())


@pytest.mark.parametrize(
    ("body", "text", "answer"),
    [
        ({}, True, True),
        ({"tools": []}, True, True),
        ({"tools": [{"type": "function"}]}, True, False),
        ({"echo": True}, True, False),
        ({"use_beam_search": True}, False, False),
        ([], True, True),
    ],
)
def test_a_body_may_ask_for_what_no_memory_gives(body: Any, text: bool, answer: bool) -> None:
    async def asked() -> None:
        prompt, _ = await Hook(changed("text")).ask(request=FiredEdits.of(body))
        assert (prompt["prompt_token_ids"] != ASKED) == text
        _, params = await Hook(changed()).ask(request=FiredEdits.of(body))
        assert (params.extra_args is not None) == answer

    asyncio.run(asked())


def test_only_prompts_of_tokens_are_read() -> None:
    async def asked() -> None:
        hook = Hook(changed())
        for prompt in ({"type": "embeds", "prompt_embeds": None}, {"type": "multimodal", "prompt_token_ids": ASKED}):
            assert (await hook.ask(prompt))[0] is prompt
        assert hook.metric("lookup_seconds_count") == 0

    asyncio.run(asked())


def test_a_version_without_a_memory_costs_nothing() -> None:
    async def asked() -> None:
        hook = Hook(FrontMemory())
        await hook.ask()
        assert hook.metric("lookup_seconds_count") == 0 and hook.hook._readers._threads == set()

    asyncio.run(asked())


def test_the_room_for_an_answer_is_what_is_asked_for_unless_it_fills_the_context() -> None:
    async def asked() -> None:
        hook = Hook(changed())
        for max_tokens in (1, CONTEXT - 4, CONTEXT - 3, 100):
            await hook.ask(max_tokens=max_tokens)
        reader: Any = hook.memory.reader
        assert reader.rooms == [1, CONTEXT - 4, CONTEXT - 3, CONTEXT - 3]
        assert request_hook._room(3, None, 1000) == request_hook._room(3, 997, 1000) == request_hook.FREE_ROOM
        assert request_hook._room(3, 996, 1000) == 996

    asyncio.run(asked())


def test_other_requests_go_on_while_one_is_read() -> None:
    async def asked() -> None:
        hook = Hook(changed())
        reader: Any = hook.memory.reader
        reader.go_on.clear()
        slow = asyncio.create_task(hook.ask())
        await asyncio.sleep(0.05)
        without = Hook(FrontMemory())
        assert (await without.ask())[1].extra_args is None and not slow.done()
        reader.go_on.set()
        await slow
        assert reader.threads and threading.current_thread().name not in reader.threads

    asyncio.run(asked())


def test_a_request_keeps_its_decision_over_a_swap() -> None:
    async def asked() -> None:
        hook = Hook(changed())
        reader: Any = hook.memory.reader
        reader.go_on.clear()
        before = asyncio.create_task(hook.ask())
        await asyncio.sleep(0.05)
        hook.memory = FrontMemory()
        reader.go_on.set()
        _, params = await before
        assert params.extra_args == {"errata_answer": [8, 9]}
        assert (await hook.ask())[1].extra_args is None

    asyncio.run(asked())


def test_a_client_that_leaves_ends_its_answer_in_the_engine() -> None:
    async def asked() -> None:
        hook = Hook(changed())
        answer = hook.hook.generate({"type": "token", "prompt_token_ids": ASKED}, vllm.SamplingParams(), "id")
        assert await anext(answer) == "one" and hook.engine.closed == 0
        await answer.aclose()
        assert hook.engine.closed == 1

    asyncio.run(asked())


def test_a_fault_of_the_reader_fails_its_request_alone() -> None:
    async def asked() -> None:
        hook, request = Hook(changed()), FiredEdits()
        reader: Any = hook.memory.reader
        reader.changes = None
        with pytest.raises(AttributeError):
            await hook.ask(request=request)
        assert await request.edits() == []

    asyncio.run(asked())


def test_everything_else_is_the_engines_own() -> None:
    hook = Hook(replace(changed())).hook
    assert hook.errored is False and hook.model_config is Engine.model_config
