"""Llama-3-8B's architecture with random weights, generated on the device, and edits of realistic length; also a tiny size.

Speed and memory do not depend on the weights' values, so nothing is downloaded; no scores are taken.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from errata.edit import Edit, Probe
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.presets import layers, preset_of
from errata.model.encoding import Encoded, encode
from errata.model.language_model import LanguageModel
from errata.testbed.language_model import Shape as TokenizerShape
from errata.testbed.language_model import make_tokenizer
from errata.testbed.world import World

PROMPT_WORDS, TARGET_WORDS = 20, 3
REPHRASINGS, PROBES = 2, 10  # per training edit, as in CounterFact
_SUBJECT = slice(8, 10)  # words of the prompt
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Size:
    """Architecture of a Llama, its edited matrices, and sizes of the measurements.

    `learned` is edited by a policy of `rank` and `num_blocks`, `ultra` by UltraEdit, `spread` by MEMIT and AlphaEdit, `tuned`
    by LocFT. Moments are measured on `num_texts`; an episode has `episode_batches` of `episode_batch_size` edits. `rate_size`
    and `copied_bytes` are for measuring the device's rates.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    learned: tuple[str, ...]
    ultra: tuple[str, ...]
    spread: tuple[str, ...]
    tuned: tuple[str, ...]
    rank: int
    num_blocks: int = 4
    num_texts: int = 512
    episode_batches: int = 20
    episode_batch_size: int = 20
    rate_size: int = 8192
    copied_bytes: int = 2**30


SIZES = {
    # The matrices of the editors' presets for Llama-3-8B; LocFT's is the matrix at which FT is compared.
    "8b": Size(
        hidden=4096,
        intermediate=14336,
        layers=32,
        heads=32,
        kv_heads=8,
        vocabulary=128256,
        learned=preset_of(RLEdit, "llama3_8b").modules,
        ultra=preset_of(UltraEdit, "llama3_8b").modules,
        spread=preset_of(MEMIT, "llama3_8b").modules,
        tuned=preset_of(FTL, "llama3_8b").modules,
        rank=preset_of(RLEdit, "llama3_8b").fields["rank"],
    ),
    "tiny": Size(
        hidden=64,
        intermediate=192,
        layers=6,
        heads=4,
        kv_heads=2,
        vocabulary=2048,
        learned=layers(3, 4, "gate_proj", "up_proj"),
        ultra=layers(2, 3, "gate_proj") + layers(3, 4, "up_proj"),
        spread=layers(1, 2, "down_proj"),
        tuned=layers(3, 3, "down_proj"),
        rank=16,
        num_texts=128,
        episode_batches=2,
        episode_batch_size=4,
        rate_size=256,
        copied_bytes=2**26,
    ),
}


def make_language_model(size: Size, device: torch.device, seed: int) -> LanguageModel:
    """Generate the model in bf16 on the device itself.

    Its tokenizer knows the words of a small world; the other rows of the embedding are never used.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.device(device):
        module: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tokenizer = make_tokenizer(World(20), TokenizerShape(max_tokens=8192))
    return LanguageModel(module.eval().requires_grad_(False), tokenizer, "random")


def made_edits(count: int, seed: int, rephrasings: int = 1, probes: int = 1) -> list[Edit]:
    """Generate edits of random words.

    A prompt has 20 tokens, two of them the subject, and the answer three; rephrasings and unrelated questions have the same
    length.
    """
    rng, words = random.Random(seed), World(20).words()

    def text(num_words: int) -> str:
        return " ".join(rng.choices(words, k=num_words))

    edits = []
    for _ in range(count):
        prompt = text(PROMPT_WORDS)
        subject = " ".join(prompt.split()[_SUBJECT])
        others = tuple(text(PROMPT_WORDS) for _ in range(rephrasings))
        unrelated = tuple(Probe(text(PROMPT_WORDS), text(TARGET_WORDS)) for _ in range(probes))
        edits.append(Edit(prompt, text(TARGET_WORDS), subject, others, unrelated))
    return edits


def made_text(model: LanguageModel, num_texts: int, seed: int) -> list[Encoded]:
    """Generate texts of random words in batches, for moments of keys; every token except the first is an answer."""
    texts = [edit.prompt.partition(" ") for edit in made_edits(num_texts, seed)]
    return [_encoded(model, texts[start : start + TEXTS_AT_ONCE]) for start in range(0, num_texts, TEXTS_AT_ONCE)]


def _encoded(model: LanguageModel, texts: Sequence[tuple[str, str, str]]) -> Encoded:
    return encode(model.renderer, [first for first, _, _ in texts], [rest for _, _, rest in texts], model.device)
