"""Every architecture under test, as a random model of three blocks with the tokenizer of a world of 20 people.

Unit tests and tests with an engine share these models, so that the models that are edited are also those that are served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from errata.model.language_model import LanguageModel, attention_for
from errata.testbed.language_model import Shape, make_tokenizer, save
from errata.testbed.world import World

WORLD = World(20)
NUM_BLOCKS = 3
WINDOW = 8  # In tokens, and shorter than the prompts, so that sliding attention has an effect.
MAX_TOKENS = 64
HIDDEN, HEAD, HEADS = 64, 32, 2  # vLLM has a CPU kernel for this head size.

LLAMA_LIKE = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
GPT_J = ("attn.k_proj", "attn.v_proj", "attn.q_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out")
GPT_2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
PHI = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2")
PHI_3 = ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj")

TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
SIZES: dict[str, Any] = TOKENS | {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": MAX_TOKENS,
}
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 1, "head_dim": HEAD}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GPT_SIZES: dict[str, Any] = TOKENS | {"n_embd": HIDDEN, "n_layer": NUM_BLOCKS, "n_head": HEADS, "n_positions": MAX_TOKENS}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": MAX_TOKENS // 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 16,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Architecture:
    """An architecture: `config` maps a vocabulary size to a configuration.

    `matrices` are the linear modules of a block in the model's order. `written` is the last one of the feed-forward part, into
    which closed-form editors write.
    """

    config: Callable[[int], PreTrainedConfig]
    matrices: tuple[str, ...] = LLAMA_LIKE
    written: str = "mlp.down_proj"
    blocks: str = "model.layers"
    transposed: bool = False
    tied: bool = False

    def block(self, number: int | str) -> str:
        return f"{self.blocks}.{number}"

    def name(self, matrix: str, block: int | str = 1) -> str:
        """Return the module name of a matrix of a block."""
        return f"{self.block(block)}.{matrix}"


def _wrapped(vocabulary: int) -> Gemma3Config:
    text = Gemma3TextConfig(vocab_size=vocabulary, query_pre_attn_scalar=HEAD, **GROUPED, **SLIDING)
    tokens = {"image_token_index": 2, "boi_token_index": 2, "eoi_token_index": 2, "mm_tokens_per_image": 1}
    return Gemma3Config(text_config=text, vision_config=VISION, tie_word_embeddings=True, **TOKENS, **tokens)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama3": Architecture(
        lambda v: LlamaConfig(vocab_size=v, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True, **GROUPED), tied=True
    ),
    "mistral": Architecture(lambda v: MistralConfig(vocab_size=v, sliding_window=WINDOW, **GROUPED)),
    "qwen2.5": Architecture(
        lambda v: Qwen2Config(vocab_size=v, tie_word_embeddings=True, num_key_value_heads=1, **SIZES), tied=True
    ),
    "qwen3": Architecture(lambda v: Qwen3Config(vocab_size=v, tie_word_embeddings=True, **GROUPED), tied=True),
    "gemma2": Architecture(
        lambda v: Gemma2Config(
            vocab_size=v,
            query_pre_attn_scalar=HEAD,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=5.0,
            tie_word_embeddings=True,
            **GROUPED,
            **SLIDING,
        ),
        tied=True,
    ),
    "gemma3": Architecture(
        lambda v: Gemma3TextConfig(vocab_size=v, query_pre_attn_scalar=HEAD, tie_word_embeddings=True, **GROUPED, **SLIDING),
        tied=True,
    ),
    "gemma3-wrapped": Architecture(_wrapped, blocks="model.language_model.layers", tied=True),
    "gpt-j": Architecture(
        lambda v: GPTJConfig(vocab_size=v, rotary_dim=16, tie_word_embeddings=False, **GPT_SIZES),
        matrices=GPT_J,
        written="mlp.fc_out",
        blocks="transformer.h",
    ),
    "gpt-2": Architecture(
        lambda v: GPT2Config(vocab_size=v, tie_word_embeddings=True, **GPT_SIZES),
        matrices=GPT_2,
        written="mlp.c_proj",
        blocks="transformer.h",
        transposed=True,
        tied=True,
    ),
    "phi": Architecture(lambda v: PhiConfig(vocab_size=v, **SIZES), matrices=PHI, written="mlp.fc2"),
    "phi3": Architecture(lambda v: Phi3Config(vocab_size=v, num_key_value_heads=1, **SIZES), matrices=PHI_3),
    "phi4-mini": Architecture(
        lambda v: Phi3Config(
            vocab_size=v,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
            **SIZES,
        ),
        matrices=PHI_3,
        tied=True,
    ),
}


def make_tiny(name: str) -> LanguageModel:
    """Make a random model in fp32. Biases and norms are random, too, so that a reload that forgets one fails a test."""
    tokenizer = make_tokenizer(WORLD, Shape(max_tokens=MAX_TOKENS))
    generator = torch.Generator().manual_seed(0)
    config = ARCHITECTURES[name].config(len(tokenizer))
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention_for(config))
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.15 * noise if parameter.dim() > 1 else parameter.data + 0.1 * noise
    if name.startswith("gemma"):  # Its scaled embedding would otherwise outweigh the blocks.
        module.get_input_embeddings().weight.data /= HIDDEN**0.5
    return LanguageModel(module.eval().requires_grad_(False), tokenizer, name)


def save_tiny(name: str, directory: Path) -> Path:
    """Save the model as a checkpoint. GPT-2 gets the names of the published one, which have no `transformer.`."""
    model = make_tiny(name)
    save(model.module, model.tokenizer, directory)
    if name == "gpt-2":
        file = directory / "model.safetensors"
        tensors = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return directory
