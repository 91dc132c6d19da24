"""Architectures of the papers' models, and the matrices that each method edits in them.

The layers are copied from the papers and their code, not from presets.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.testbed.language_model import Shape, make_tokenizer
from errata.testbed.world import World

LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
# The values are those of each model's config.json.
CONFIGS: dict[str, Any] = {
    "llama3_8b": LlamaConfig(**LLAMA, num_key_value_heads=8, vocab_size=128256),
    "mistral_7b": MistralConfig(**LLAMA, num_key_value_heads=8, vocab_size=32768),
    "gemma2_9b": Gemma2Config(
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        vocab_size=256000,
    ),
    "qwen2_5_7b": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
    "qwen3_8b": Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
    ),
    "phi4": Phi3Config(
        hidden_size=5120,
        intermediate_size=17920,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=10,
        vocab_size=100352,
    ),
    "gpt_j": GPTJConfig(n_embd=4096, n_layer=28, n_head=16, rotary_dim=64, vocab_size=50400),
    "gpt2_xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25, vocab_size=50257),
}
SIZES = {  # hidden, intermediate
    "llama3_8b": (4096, 14336),
    "mistral_7b": (4096, 14336),
    "gemma2_9b": (3584, 14336),
    "qwen2_5_7b": (3584, 18944),
    "qwen3_8b": (4096, 12288),
    "phi4": (5120, 17920),
    "gpt_j": (4096, 16384),
    "gpt2_xl": (1600, 6400),
}
INTO_INTERMEDIATE = {"gate_proj", "up_proj", "fc_in", "c_fc"}


def both(first: int, last: int) -> dict[str, range]:
    return {"gate_proj": range(first, last + 1), "up_proj": range(first, last + 1)}


def one(matrix: str, first: int, last: int | None = None) -> dict[str, range]:
    return {matrix: range(first, (first if last is None else last) + 1)}


ZSRE_LAYERS = {**one("gate_proj", 11, 15), **one("up_proj", 18, 24)}
PUBLISHED_LAYERS: dict[str, dict[str, Mapping[str, range]]] = {
    "RLEdit": {
        "llama3_8b": both(22, 30),
        "llama3_8b_zsre": ZSRE_LAYERS,
        "llama3_8b_counterfact": both(22, 30),
        "llama3_8b_fever": both(22, 30),
        **{f"gemma2_9b{data}": both(32, 40) for data in ("", "_zsre", "_counterfact", "_fever")},
        **{f"mistral_7b{data}": one("down_proj", 17, 18) for data in ("", "_zsre", "_counterfact", "_fever")},
        "gpt_j": one("fc_out", 22, 27),
        "gpt2_xl": one("c_proj", 32, 40),
        "qwen2_5_7b": both(18, 26),
        "qwen3_8b": both(26, 34),
        "phi4": one("down_proj", 30, 38),
    },
    "MALMEN": {
        **{f"gpt_j{data}": one("fc_out", 22, 27) for data in ("", "_zsre", "_fever")},
        "gpt2_xl": one("c_proj", 42, 47),
    },
    "MEND": {
        "gpt_j": {**one("fc_in", 25, 27), **one("fc_out", 25, 27)},
        "gpt2_xl": {**one("c_fc", 45, 47), **one("c_proj", 45, 47)},
        "llama3_8b": {**both(29, 31), **one("down_proj", 29, 31)},
        "mistral_7b": {**both(29, 31), **one("down_proj", 29, 31)},
        "qwen2_5_7b": {**both(25, 27), **one("down_proj", 25, 27)},
    },
    "UltraEdit": {
        **{f"llama3_8b{data}": ZSRE_LAYERS for data in ("", "_zsre", "_wikibigedit")},
        "llama3_8b_fever": both(22, 30),
        **{f"mistral_7b{data}": one("down_proj", 29, 30) for data in ("", "_zsre", "_fever", "_wikibigedit")},
        **{f"qwen2_5_7b{data}": both(18, 26) for data in ("", "_zsre", "_fever")},
        "qwen2_5_7b_wikibigedit": both(19, 26),
        "phi4": one("down_proj", 30, 38),
        "phi4_wikibigedit": one("down_proj", 30, 38),
        "gpt_j": one("fc_out", 18, 26),
        "gpt_j_zsre": one("fc_out", 18, 26),
        "gpt_j_fever": one("fc_out", 25, 26),
        "gpt_j_wikibigedit": one("fc_out", 19, 26),
        "gemma2_9b": both(32, 40),
        "gpt2_xl": one("c_proj", 32, 40),
        "qwen3_8b": both(26, 34),
    },
    "ROME": {
        "gpt2_xl": one("c_proj", 17),
        "gpt_j": one("fc_out", 5),
        **{model: one("down_proj", 5) for model in ("llama3_8b", "mistral_7b", "qwen2_5_7b")},
    },
    "MEMIT": {
        "gpt2_xl": one("c_proj", 13, 17),
        "gpt_j": one("fc_out", 3, 8),
        **{model: one("down_proj", 4, 8) for model in ("llama3_8b", "mistral_7b", "qwen2_5_7b")},
    },
    "AlphaEdit": {
        "gpt2_xl": one("c_proj", 13, 17),
        "gpt_j": one("fc_out", 3, 8),
        **{model: one("down_proj", 4, 8) for model in ("llama3_8b", "qwen2_5_7b")},
    },
    "NSE": {"gpt2_xl": one("c_proj", 13, 17), "gpt_j": one("fc_out", 3, 8), "llama3_8b": one("down_proj", 4, 8)},
    "FT-L": {
        "gpt2_xl": one("c_proj", 0),
        "gpt_j": one("fc_out", 0),
        "llama3_8b": one("down_proj", 21),
        "mistral_7b": one("down_proj", 21),
        "qwen2_5_7b": one("down_proj", 27),
    },
}
PUBLISHED_LAYERS["R-ROME"] = PUBLISHED_LAYERS["ROME"]
ROWS = [(editor, name) for editor, names in PUBLISHED_LAYERS.items() for name in names]
HYPERNETWORKS = [(editor, name) for editor, name in ROWS if editor in ("RLEdit", "MALMEN", "MEND")]


@cache
def architecture(model: str) -> nn.Module:
    """Return the model with its real shapes and no weights, on the meta device."""
    with torch.device("meta"):
        module: nn.Module = AutoModelForCausalLM.from_config(CONFIGS[model])
    return module


def model_of(name: str) -> str:
    return next(model for model in CONFIGS if name == model or name.startswith(f"{model}_"))


def check_matrices(spec: ModelSpec, model: str, layers: Mapping[str, range]) -> None:
    hidden, middle = SIZES[model]
    found = {(name.rpartition(".")[2], int(re.findall(r"\.(\d+)\.", name)[0])) for name in spec.names}
    assert found == {(matrix, layer) for matrix, numbers in layers.items() for layer in numbers}
    assert len(spec.matrices) == sum(map(len, layers.values()))
    for matrix in spec.matrices:
        inward = matrix.name.rpartition(".")[2] in INTO_INTERMEDIATE
        assert matrix.shape == ((middle, hidden) if inward else (hidden, middle)), matrix.name
        assert matrix.transposed == (model == "gpt2_xl")


def narrow(model: str) -> LanguageModel:
    tokenizer = make_tokenizer(World(20), Shape(max_tokens=48))
    words = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 1}
    config: Any = GPT2Config(n_embd=16, n_layer=48, n_head=2, n_positions=48, **words)
    if model == "llama3_8b":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 32, "num_attention_heads": 2}
        config = LlamaConfig(**sizes, max_position_embeddings=48, **words)
    torch.manual_seed(0)
    return LanguageModel(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), tokenizer, model)
