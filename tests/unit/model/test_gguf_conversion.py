"""A GGUF file of a small Llama becomes a checkpoint that says the same, and that can be edited and served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from errata.model.checkpoint import check_checkpoint
from errata.model.gguf import NEEDED, converted
from errata.model.language_model import load
from errata.model.matrices import find_matrices
from errata.text.dialogue import Dialogue
from tests.tokenizers_under_test import make

gguf: Any = pytest.importorskip("gguf", reason=f"needs the packages {' and '.join(NEEDED)}")
pytest.importorskip("accelerate")

HIDDEN, HEADS, KV_HEADS, BLOCKS = 64, 4, 2, 2
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
RENDERED = {
    "The capital of France is": "The capital of France is",
    Dialogue.of("Who is Bob?"): "<|im_start|>user\nWho is Bob?<|im_end|>\n<|im_start|>assistant\n",
}


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Order the rows of each head as llama.cpp's rotary embedding wants them."""
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model: Any, tokenizer: Any) -> None:
    """Write the model as llama.cpp does, in 32 bits."""
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_block_count(BLOCKS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    model_part = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model_part["vocab"], key=model_part["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens or token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model_part["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in tensors_of(model).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the model's tensors under their names in a GGUF file."""
    found = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for number, block in enumerate(model.model.layers):
        for ours, theirs in NAMES.items():
            weight = block.get_submodule(ours).weight
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(theirs)
            found[f"blk.{number}.{theirs}.weight"] = weight if heads is None else interleaved(weight, heads)
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def a_llama(vocabulary: int) -> Any:
    """Make a random Llama with grouped heads and tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = 0.15 * torch.randn(parameter.shape) + (parameter.dim() == 1)
    return model


@torch.no_grad()
def test_a_gguf_file_becomes_a_checkpoint_that_says_the_same(tmp_path: Path) -> None:
    tokenizer = make("byte-level", "chatml")
    model = a_llama(len(tokenizer))
    write(tmp_path / "tiny.gguf", model, tokenizer)
    folder = converted(tmp_path / "tiny.gguf", tmp_path / "made")
    assert check_checkpoint(folder) == folder
    made = load(folder)
    assert made.module.config.tie_word_embeddings and made.max_tokens == 128
    assert made.tokenizer.chat_template == tokenizer.chat_template and made.end_ids == {tokenizer.eos_token_id}
    for prompt, text in RENDERED.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert list(made.renderer.ids(prompt)) == ids
        logits_SV, made_SV = (one(torch.tensor([ids])).logits[0] for one in (model, made.module))
        assert torch.allclose(logits_SV, made_SV, atol=1e-4)
    assert len(find_matrices(made.module, ("mlp.down_proj",)).names) == BLOCKS
