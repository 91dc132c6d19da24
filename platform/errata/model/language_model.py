"""Load a model, and name the matrices of it that may be edited: their shape, orientation and fused partners."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from errata.model.devices import devices_of, spread


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, its parameters frozen."""

    module: Any
    tokenizer: Any
    path: str

    @property
    def device(self) -> torch.device:
        """Where tokens go in; of a model over several devices, the first."""
        return next(self.module.parameters()).device

    @property
    def max_tokens(self) -> int:
        return int(self.module.config.get_text_config().max_position_embeddings)  # Gemma 3 has one for images, too


def load(path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LanguageModel:
    """A Hugging Face model by folder or hub name, in evaluation mode, with no parameter that takes a gradient.

    `device` as `devices.devices_of` reads it; over several, its blocks are spread, and it is first read into the host's memory.
    Raises `ValueError` for a device that is not there, before anything is read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    devices = devices_of(device)
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    attention = attention_for(AutoConfig.from_pretrained(str(path)))
    module: Any = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, attn_implementation=attention)
    module.eval().requires_grad_(False)
    if len(devices) > 1:
        spread(module, devices)
    else:
        module.to(devices[0])
    return LanguageModel(module, tokenizer, str(path))


def attention_for(config: Any) -> str | None:
    """`eager` for a model that caps its attention's logits (Gemma 2), else None, the default.

    Transformers' default, torch's fused attention, leaves the cap out without a word: another model than the one served.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "eager" if capped else None


def checkpoint_fingerprint(path: str | Path) -> str:
    """SHA-256 over the checkpoint's weight files; of the name where it is not a local folder."""
    digest = hashlib.sha256()
    files = sorted(Path(path).glob("*.safetensors"))
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest() if files else hashlib.sha256(str(path).encode()).hexdigest()
