"""Prompt ids of the renderer against those of vLLM: its own renderer over many tokenizers, and the running service."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from errata.edit import Code, EditRejected
from errata.model.renderer import Renderer
from errata.model.tokenizer_files import tokenizer_options
from errata.text.dialogue import Dialogue, Message, Prompt
from tests.e2e.scalable import ScalableService
from tests.e2e.serving.application import App
from tests.tokenizers_under_test import EASTERN, FAMILIES, MARKS, TEMPLATES, WESTERN, make

pytestmark = pytest.mark.e2e

SIGNS = [
    "🎸",
    "👩‍👩‍👧",
    "Łódż",
    "Beyonce\u0301",
    "ﬁ",
    "½",
    "Ａ",
    "  ",
    "\n\n",
    "\t",
    "\u00a0",
    '"',
    "$",
    "get_",
    "ZX-",
    "l'",
    "𠀀",
    "\u200d",
]
WORDS = [*" ".join((*WESTERN, *EASTERN)).split(" "), *SIGNS, *MARKS, "<s>", "</s>", "[INST]", "1889", "77"]
MAX_TOKENS = 4096
REFUSED = "refused"


def text(chance: random.Random) -> str:
    blank = chance.choice((" ", " ", " ", "", "\n"))
    edge = chance.choice(("", "", " ", "\n"))
    return edge + blank.join(chance.choices(WORDS, k=chance.randint(1, 12))) + chance.choice(("", "", " "))


def dialogue(chance: random.Random) -> Dialogue:
    before = [Message("system", text(chance))] if chance.random() < 0.4 else []
    for _ in range(chance.choice((0, 0, 1, 2))):
        before += [Message("user", text(chance)), Message("assistant", text(chance))]
    return Dialogue.of(text(chance), before)


def prompts(seed: str, number: int) -> Iterator[Prompt]:
    """Generate half as many completions as dialogues: templates have more cases."""
    chance = random.Random(seed)
    for index in range(number):
        yield text(chance) if index % 3 == 0 else dialogue(chance)


class Served:
    """vLLM's renderer of the requests to its HTTP routes, with what it reads of an engine's configuration."""

    def __init__(self, folder: str) -> None:
        from vllm.renderers.hf import HfRenderer
        from vllm.tokenizers.hf import CachedHfTokenizer

        self.model: Any = SimpleNamespace(
            model=folder,
            tokenizer=folder,
            max_model_len=MAX_TOKENS,
            renderer_num_workers=1,
            hf_config=SimpleNamespace(model_type="llama"),
            get_vocab_size=lambda: 0,
            **dict.fromkeys(("supports_multimodal_inputs", "is_multimodal_model", "is_encoder_decoder"), False),
            **dict.fromkeys(("enable_prompt_embeds", "trust_remote_code"), False),
            **dict.fromkeys(("multimodal_config", "encoder_config", "revision", "tokenizer_revision", "code_revision")),
        )
        parallel = SimpleNamespace(_api_process_rank=0, _api_process_count=1)
        config: Any = SimpleNamespace(model_config=self.model, parallel_config=parallel)
        self.renderer = HfRenderer(config, CachedHfTokenizer.from_pretrained(folder))

    def ids(self, prompt: Prompt) -> list[int] | str:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.exceptions import VLLMValidationError

        if isinstance(prompt, str):
            asked = CompletionRequest(model="m", prompt=prompt)
            [made] = self.renderer.render_cmpl([{"prompt": prompt}], asked.build_tok_params(self.model))
            return list(made["prompt_token_ids"])
        chat = ChatCompletionRequest(model="m", messages=prompt.to_json())
        try:
            _, [made] = self.renderer.render_chat(
                [chat.messages], chat.build_chat_params(None, "auto"), chat.build_tok_params(self.model)
            )
        except VLLMValidationError:
            return REFUSED
        return list(made["prompt_token_ids"])


def rendered(renderer: Renderer, prompt: Prompt) -> list[int] | str:
    try:
        return list(renderer.ids(prompt))
    except EditRejected as refused:
        assert refused.code == Code.TEMPLATE_REFUSES
        return REFUSED


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_have_the_ids_that_vllm_makes(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nine families by ten templates, 36 prompts each: 3,240 in all."""
    compared, refused, different = 0, 0, []
    for template in TEMPLATES:
        folder = str(tmp_path / template)
        make(family, template).save_pretrained(folder)
        served, ours = Served(folder), Renderer(AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder)))
        for prompt in prompts(f"{family} {template}", 36):
            wanted = served.ids(prompt)
            compared, refused = compared + 1, refused + (wanted == REFUSED)
            if rendered(ours, prompt) != wanted:
                different.append((template, prompt))
        served.renderer.shutdown()
    with capsys.disabled():
        print(f"\n{family}: {compared} prompts compared, {refused} refused by both, {len(different)} differ")
    assert not different and compared == 36 * len(TEMPLATES) and 0 < refused < 36


def test_the_running_service_makes_the_same_ids(app: App, service: ScalableService, capsys: pytest.CaptureFixture[str]) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(service.model, **tokenizer_options(service.model)))
    different, compared = [], 0
    for prompt in prompts("service", 300):
        body = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt.to_json(), "add_generation_prompt": True}
        answer = app.http.post("/tokenize", json={"model": "errata", **body}).raise_for_status().json()
        compared += 1
        if answer["tokens"] != list(renderer.ids(prompt)):
            different.append(prompt)
    with capsys.disabled():
        print(f"\nservice: {compared} prompts compared, {len(different)} differ")
    assert not different and compared == 300
