"""Greedy decoding: of prompts that begin alike, and with the defaults of the checkpoint that the served model follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from errata.model import generation
from errata.model.generation import greedy, shared_beginning
from errata.model.language_model import LanguageModel, load
from tests.tiny_models import ARCHITECTURES, WORLD, make_tiny, save_tiny

COMMON = "the city where the dog of the city was born is the city where "


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shared_beginning_changes_no_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for models with sliding windows, which read every prompt whole."""
    model = make_tiny(name)
    prompts = [COMMON + edit.prompt for edit in WORLD.edits("test", 4)]
    rows = [list(model.renderer.ids(prompt)) for prompt in prompts]
    assert shared_beginning(rows) >= generation.MIN_SHARED and len({len(ids) for ids in rows}) > 1
    once = greedy(model, prompts, 6)
    monkeypatch.setattr(generation, "MIN_SHARED", 10**6)
    assert once == greedy(model, prompts, 6)


def test_each_prompt_keeps_a_token_of_its_own() -> None:
    assert shared_beginning([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9]]) == 2
    assert shared_beginning([[1, 2, 3], [1, 2, 3]]) == 2, "the last one is read to predict the next"
    assert shared_beginning([[1, 2], [3]]) == 0 and shared_beginning([[1, 2, 3]]) == 0


PROMPTS = [edit.prompt for edit in WORLD.edits("test", 8)]


def by_transformers(model: LanguageModel, prompt: str, max_tokens: int, penalty: float) -> list[int]:
    """Generate greedily after one prompt, without padding, by transformers' own penalty."""
    ids = torch.tensor([model.renderer.ids(prompt)])
    made = model.module.generate(input_ids=ids, max_new_tokens=max_tokens, do_sample=False, repetition_penalty=penalty)
    return [token for token in made[0, ids.shape[1] :].tolist() if token not in model.end_ids]


@pytest.mark.parametrize("name", ["llama3", "mistral", "gpt-2"])
def test_a_repetition_penalty_is_that_of_transformers(name: str) -> None:
    model = make_tiny(name)
    prompts = [*PROMPTS, *(COMMON + prompt for prompt in PROMPTS)]
    plain = [by_transformers(model, prompt, 8, 1.0) for prompt in prompts]
    wanted = [by_transformers(model, prompt, 8, 1.2) for prompt in prompts]
    assert greedy(model, prompts, 8) == plain != wanted
    model.module.generation_config.repetition_penalty = 1.2
    assert greedy(model, prompts, 8) == wanted
    assert greedy(model, prompts[len(PROMPTS) :], 8) == wanted[len(PROMPTS) :], "what they share is read once"


@pytest.mark.parametrize("begin", ["", COMMON], ids=["own beginnings", "a shared beginning"])
def test_a_penalty_does_not_fall_on_padding(begin: str) -> None:
    """Many tokenizers have no padding token but the end token, which a penalty would then push away."""
    model, short, long = make_tiny("llama3"), f"{begin}the", f"{begin}the old dog of the old city is"
    model.module.generation_config.repetition_penalty = 1.2
    end = by_transformers(model, short, 1, 1.2)[0]
    model.module.generation_config.eos_token_id = model.tokenizer.pad_token_id = end
    assert end not in model.renderer.ids(short)
    assert greedy(model, [short, long], 6) == [[], by_transformers(model, long, 6, 1.2)]


def test_of_a_checkpoint_s_defaults_those_are_followed_that_vllm_follows(tmp_path: Path) -> None:
    """vLLM takes the end tokens and the penalty; transformers would also search with beams and forbid words."""
    folder = save_tiny("llama3", tmp_path)
    plain = load(folder)
    wanted = [by_transformers(plain, prompt, 8, 1.2) for prompt in PROMPTS]
    forbidden = sorted({token for ids in wanted for token in ids})
    config = {"repetition_penalty": 1.2, "num_beams": 3, "no_repeat_ngram_size": 2, "suppress_tokens": forbidden}
    more = {"min_new_tokens": 6, "bad_words_ids": [[token] for token in forbidden], "do_sample": True, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, wanted[0][3]], **config, **more}))
    model = load(folder)
    assert model.end_ids == {1, wanted[0][3]} and model.repetition_penalty == 1.2
    found = greedy(model, PROMPTS, 8)
    assert found[0] == wanted[0][: wanted[0].index(wanted[0][3])]
    assert found == [_until(ids, wanted[0][3]) for ids in wanted]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
