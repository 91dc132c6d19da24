"""Memories that a replica serves: the answers of vLLM are those of transformers, for each kind, in batches of other requests.

One replica without Serve, over the toy model. Its versions branch off the unedited model, one memory each, and all of them
share the engine's cache. Its steps and the blocks of its cache have 32 tokens, so that longer prompts are read in parts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from errata.edit import Edit, EditBatch
from errata.edit_memory.bank import EMBEDDED, PER_TOKEN, Kind
from errata.editors.editor import Editor
from errata.editors.memory_based.answer import AnswerMemory
from errata.editors.memory_based.elder import ELDER
from errata.editors.memory_based.recipe import RECIPE
from errata.editors.memory_based.rtd import RTD
from errata.editors.memory_based.scr import SCR
from errata.editors.memory_based.state import StateMemory
from errata.editors.memory_based.swea import SWEA
from errata.editors.memory_based.trained import MemoryTrainer
from errata.model.generation import greedy
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import PHRASINGS
from errata.text.dialogue import Dialogue, Message, Prompt
from serving.engine import generator
from serving.engine.generator import Generator, ServingOptions
from tests.e2e.pair import Reference, num_changed
from tests.e2e.toy import MAX_TOKENS, WORLD, make_checkpoint

pytestmark = pytest.mark.e2e
NUM_TOKENS = 10
MODULES = ("layers.1.mlp.down_proj",)
# vLLM has the first one in one module with another matrix; both lie before a block whose keys and values depend on them.
WITH_EXPERTS = ("layers.0.mlp.up_proj", "layers.0.mlp.down_proj")
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}answer"
BLOCK = 32
NUM_STEPS = 150


def trained(model: LanguageModel) -> Editor:
    editor = RECIPE(MODULES, num_features=64, learning_rate=3e-3).initialised(model, seed=0)
    trainer = MemoryTrainer(editor, model, WORLD.edits("train", 24), (NUM_STEPS, 1, 6), seed=0)
    for _ in range(NUM_STEPS):
        trainer.step()
    return editor


EDITORS: dict[Kind, Callable[[LanguageModel], Editor]] = {
    "answer": lambda _: AnswerMemory(MODULES, whole_threshold=0.9),
    "text": lambda _: SCR(MODULES, whole_threshold=0.9),
    "state": lambda _: StateMemory(MODULES, threshold=0.999),
    "datastore": lambda _: RTD(MODULES, threshold=0.999),
    "rows": lambda _: SWEA(MODULES, starters=("the",), num_steps=40, learning_rate=0.1, max_norm=10.0),
    "prefix": trained,
    "experts": lambda _: ELDER(WITH_EXPERTS, radius=2, num_steps=80),
}
VERSION: dict[Kind, int] = {kind: number for number, kind in enumerate(EDITORS, 1)}
PEOPLE = WORLD.people("test")[:4]
RIVER = "the old river waits near the bridge today"
OTHERS: list[Prompt] = [RIVER, Dialogue.of("the lamp shines tonight")]


def ask(relation: str, person: str, phrasing: int = 0) -> str:
    return PHRASINGS[relation][phrasing].format(s=person)


EDITS = [
    Edit(ask("animal", PEOPLE[0]), "tortoise parrot goose", PEOPLE[0], form="completion", id="animal"),
    Edit(ask("job", PEOPLE[1]), "baker clerk", PEOPLE[1], form="completion", id="job"),
    Edit(ask("instrument", PEOPLE[2]), "violin piano", PEOPLE[2], form="chat", id="instrument"),
]
ASKED: list[Prompt] = [
    EDITS[0].prompt,
    *(prompt for edit in EDITS[1:] for prompt in edit.prompts),
    ask("animal", PEOPLE[0], 1),
    ask("animal", PEOPLE[1]),
    ask("job", PEOPLE[3]),
    Dialogue.of(ask("instrument", PEOPLE[2], 1)),
    *OTHERS,
]
EARLIER = (Message("user", f"{EDITS[0].prompt} {' '.join([RIVER] * 4)}"), Message("assistant", "yes"))
LONG: list[Prompt] = [
    Dialogue.of(EDITS[2].prompt, EARLIER),
    f"{EDITS[0].prompt} {' '.join([RIVER] * 5)} {EDITS[0].prompt}",
]
# Experts are chosen by the whole prompt, so that a question inside a longer prompt chooses none: one long prompt is an edit.
OF_LONG = Edit(LONG[1], "clerk baker", PEOPLE[0], form="completion", id="long")  # type: ignore[arg-type]


@dataclass
class Replica:
    """A replica with its engine and application, and the loop that they run in."""

    runner: asyncio.Runner
    generator: Generator
    app: Any

    def serve(self, reference: Reference, version: int, kind: Kind) -> dict[str, Any]:
        """Move the head and swap, as an engine that was started for a memory of this kind."""
        self.generator._memory.kind = kind
        self.runner.run(self.generator.engine.collective_rpc("errata_note_fired"))
        self.runner.run(self.generator.engine.collective_rpc("errata_read_embeddings", args=(kind in EMBEDDED,)))
        self.generator._is_known = True  # As after a broadcast: only swaps take the replica to another version.
        reference.ledger.move_head(version)
        answer = self.runner.run(self.generator.swap())
        assert answer.get("error") is None and answer["version"] == version, answer
        return answer

    def answers(self, prompts: list[Prompt], **body: Any) -> list[httpx.Response]:
        """Ask all of them together."""

        async def answered() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=600) as client:
                asked = [path_and_body(prompt, **body) for prompt in prompts]
                found = await asyncio.gather(*(client.post(path, json=whole) for path, whole in asked))
            return [one.raise_for_status() for one in found]

        return self.runner.run(answered())

    def cached_tokens(self) -> float:
        """Return how many tokens of prompts the engine has found in its cache so far."""
        _, _, exposition = self.runner.run(self.generator.exposition())
        return sum(float(found) for found in re.findall(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", exposition, re.M))


def path_and_body(prompt: Prompt, **more: Any) -> tuple[str, dict[str, Any]]:
    body = {"model": "errata", "temperature": 0, "max_tokens": NUM_TOKENS, "return_token_ids": True, **more}
    if isinstance(prompt, str):
        return "/v1/completions", {**body, "prompt": prompt}
    return "/v1/chat/completions", {**body, "messages": prompt.to_json()}


def with_log_probs(replica: Replica) -> list[Any]:
    """Ask the other questions one after the other; returns the answers with the log probabilities of their tokens."""
    options = ({"logprobs": 2}, {"logprobs": True, "top_logprobs": 2})
    found = [replica.answers([other], **more)[0] for other, more in zip(OTHERS, options, strict=True)]
    return [one.json()["choices"] for one in found]


def tokens(answer: httpx.Response) -> list[int]:
    (choice,) = answer.json()["choices"]
    found: list[int] = choice["token_ids"]
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Make the ledger: its versions are the memories of `EDITORS`, and each follows version 0."""
    folder = tmp_path_factory.mktemp("memory")
    checkpoint = make_checkpoint(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(checkpoint)
    found = Reference(folder, checkpoint, (*WITH_EXPERTS, *MODULES))
    for kind, made in EDITORS.items():
        editor, edits = made(found.model), [*EDITS, OF_LONG] if kind == "experts" else EDITS
        state = editor.start(found.model, find_matrices(found.model.module, editor.modules))
        delta, state = editor.edit(found.model, EditBatch(tuple(edits)), state)
        found.ledger.append(0, delta, state, edits, {}, ("memory", "test"), expected_head=found.ledger.head)
    found.ledger.move_head(0)
    return found


@pytest.fixture(scope="module")
def replica(reference: Reference) -> Iterator[Replica]:
    def end(code: int) -> None:
        raise RuntimeError("the replica ended")

    with pytest.MonkeyPatch.context() as patched, asyncio.Runner() as runner:
        patched.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patched.setattr(generator, "attach_to_serve", lambda: None)
        patched.setattr(generator, "served_host", lambda: "127.0.0.1")
        context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r"))
        patched.setattr(generator.serve, "get_replica_context", lambda: context)
        patched.setattr(generator, "WATCH_PERIOD_S", 3600.0)
        patched.setattr(generator.os, "_exit", end)
        arguments = ServingOptions.vllm_arguments
        more = ["--block-size", str(BLOCK), "--max-num-seqs", "16"]
        patched.setattr(ServingOptions, "vllm_arguments", lambda options: [*arguments(options), *more])
        options = ServingOptions(
            str(reference.ledger.base["model"]),
            str(reference.ledger.directory),
            "errata",
            max_model_len=MAX_TOKENS,
            max_num_batched_tokens=BLOCK,
            memory="answer",
        )
        made = Generator.__new__(Generator)  # As Serve makes it, because its constructor is a coroutine.
        runner.run(made.__init__(None, options))  # type: ignore[misc, arg-type]
        app = runner.run(made.__serve_build_asgi_app__())
        yield Replica(runner, made, app)
        made._watching.cancel()
        made.engine.shutdown()


@pytest.mark.parametrize("kind", EDITORS)
def test_vllm_answers_as_transformers_does_with_each_memory(reference: Reference, replica: Replica, kind: Kind) -> None:
    version, model = VERSION[kind], reference.model
    replica.serve(reference, 0, kind)
    alone = with_log_probs(replica)
    swapped = replica.serve(reference, version, kind)
    assert swapped["ms"] < 60_000 and swapped["dense_bytes"] == 0
    found: dict[int, list[list[int]]] = {}
    for number in (version, 0):
        replica.serve(reference, number, kind)
        reference.merge(number)
        answers = replica.answers(ASKED)
        ends = model.end_ids
        found[number] = [[token for token in tokens(one) if token not in ends] for one in answers]
        assert found[number] == greedy(model, ASKED, NUM_TOKENS)
        if number == version:
            check_named(answers)
    assert num_changed(found[version], found[0]) >= 3
    assert found[version][-len(OTHERS) :] == found[0][-len(OTHERS) :]
    replica.serve(reference, version, kind)
    assert with_log_probs(replica) == alone, "the same bits as with an empty memory"


def check_named(answers: list[httpx.Response]) -> None:
    """Check that each answer to an edited question names its edit, and no other answer does."""
    named = [[edit["id"] for edit in one.json()["errata"].get("edits", ())] for one in answers]
    assert named[:3] == [["animal"], ["job"], ["instrument"]] and named[-len(OTHERS) :] == [[]] * len(OTHERS)
    assert [one.headers.get("X-Errata-Edit", "").partition(";")[0] for one in answers] == ["".join(ids) for ids in named]


def test_an_answer_is_said_and_its_turn_ends(reference: Reference, replica: Replica) -> None:
    replica.serve(reference, 1, "answer")
    completion, chat = replica.answers([EDITS[0].prompt, EDITS[2].prompts[0]])
    assert completion.json()["choices"][0]["text"].split() == ["tortoise", "parrot", "goose"]
    (choice,) = chat.json()["choices"]
    assert choice["message"]["content"].split() == ["violin", "piano"] and choice["finish_reason"] == "stop"
    (several,) = replica.answers([EDITS[0].prompt], n=3, temperature=1.5, seed=1)
    assert {one["text"] for one in several.json()["choices"]} == {completion.json()["choices"][0]["text"]}
    assert len(several.json()["errata"]["edits"]) == 1


@pytest.mark.parametrize("kind", ["datastore", "rows", "prefix", "experts"])
def test_neither_parts_nor_a_warm_cache_nor_neighbours_change_an_answer(
    reference: Reference, replica: Replica, kind: Kind
) -> None:
    found: dict[int, list[list[int]]] = {}
    for number in (0, VERSION[kind], 0, VERSION[kind]):  # Twice: each finds the blocks of the other in the cache.
        replica.serve(reference, number, kind)
        reference.merge(number)
        alone = [tokens(replica.answers([prompt])[0]) for prompt in LONG]
        before = replica.cached_tokens()
        assert [tokens(one) for one in replica.answers([*LONG, *ASKED])[: len(LONG)]] == alone
        assert replica.cached_tokens() >= before + 2 * BLOCK, "the prompts are in the cache"
        ends = reference.model.end_ids
        assert [[token for token in ids if token not in ends] for ids in alone] == greedy(reference.model, LONG, NUM_TOKENS)
        assert found.setdefault(number, alone) == alone
    if kind in EMBEDDED | {"experts"}:
        assert num_changed(found[VERSION[kind]], found[0]) >= 1


@pytest.mark.parametrize("kind", sorted(PER_TOKEN))
def test_a_stream_names_what_fired_in_the_worker(reference: Reference, replica: Replica, kind: Kind) -> None:
    replica.serve(reference, VERSION[kind], kind)
    edited, other = replica.answers([EDITS[0].prompt, RIVER], stream=True)
    named = [[edit["id"] for edit in event["errata"].get("edits", ())] for event in events_of(edited)]
    assert [name for names in named for name in names] == ["animal"] and "x-errata-edit" not in edited.headers
    assert not any("edits" in event["errata"] for event in events_of(other))


def events_of(answer: httpx.Response) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line.startswith("data: {")]


@pytest.mark.parametrize("kind", ["answer", "rows", "prefix"])
def test_a_stream_keeps_its_memory_over_a_swap(reference: Reference, replica: Replica, kind: Kind) -> None:
    options = {"max_tokens": 60, "ignore_eos": True}

    async def streamed() -> tuple[dict[str, str], list[dict[str, Any]]]:
        path, body = path_and_body(EDITS[0].prompt, stream=True, **options)
        headers: dict[str, str] = {}
        events: list[dict[str, Any]] = []
        swap: list[asyncio.Task[Any]] = []

        async def receive() -> dict[str, Any]:
            if not received:
                received.append(True)
                return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
            await asyncio.Event().wait()
            return {}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers.update({key.decode(): value.decode() for key, value in message["headers"]})
                return
            for line in message.get("body", b"").decode().split("\n\n"):
                if line.startswith("data: {"):
                    events.append(json.loads(line.removeprefix("data: ")))
            if events and not swap:
                swap.append(asyncio.create_task(replica.generator.swap()))

        received: list[bool] = []
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http"}
        scope |= {
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
            "http_version": "1.1",
        }
        scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "asgi": {"version": "3.0"}}
        reference.ledger.move_head(0)
        await replica.app(scope, receive, send)
        assert (await swap[0])["version"] == 0
        return headers, events

    replica.serve(reference, VERSION[kind], kind)
    expected = replica.answers([EDITS[0].prompt], **options)[0].json()["choices"][0]["text"]
    headers, events = replica.runner.run(streamed())
    assert headers["x-errata-edit"].startswith("animal;score=") and events[0]["errata"]["edits"][0]["id"] == "animal"
    assert "".join(event["choices"][0]["text"] for event in events) == expected
    assert {event["errata"]["version_max"] for event in events} == {VERSION[kind]}
    plainly = replica.answers([EDITS[0].prompt], **options)[0].json()
    assert "edits" not in plainly["errata"] and plainly["choices"][0]["text"] != expected


def test_a_request_that_an_answer_would_break_is_answered_by_the_model(reference: Reference, replica: Replica) -> None:
    ask_plainly = partial(replica.answers, [EDITS[0].prompt])
    replica.serve(reference, 0, "answer")
    (before,) = ask_plainly(logit_bias={"5": 1.0})
    replica.serve(reference, 1, "answer")
    assert tokens(ask_plainly(logit_bias={"5": 1.0})[0]) == tokens(before) != tokens(ask_plainly()[0])
    (forged,) = replica.answers(["the old river waits"], vllm_xargs={"errata_answer": [5, 6]})
    assert tokens(forged) == tokens(replica.answers(["the old river waits"])[0])


def test_no_log_line_has_a_text_of_a_memory(
    reference: Reference, replica: Replica, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, level in {"": logging.DEBUG, "errata": logging.DEBUG, "vllm": logging.INFO}.items():
        caplog.set_level(level, name)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    for version in (1, 2, 0):
        replica.serve(reference, version, "answer" if version != 2 else "text")
        replica.answers(ASKED)
    replica.answers([EDITS[0].prompt], n=3, temperature=1.0)
    replica.answers([EDITS[0].prompt], logit_bias={"5": 1.0})
    with pytest.raises(httpx.HTTPStatusError):
        replica.answers([f"{EDITS[0].prompt} " * 90])
    assert len(caplog.records) >= 3
    texts = {text for edit in EDITS for text in (edit.target, *edit.rephrasings)} | {
        one if isinstance(one, str) else one.question for one in ASKED
    }
    lines = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    assert not [line for line in lines for text in texts if text in line]
