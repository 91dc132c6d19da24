"""A causal language model with its tokenizer, loaded from a folder or the hub."""

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
        """The device that takes the tokens: the first one, if the model is spread over several."""
        return next(self.module.parameters()).device

    @property
    def max_tokens(self) -> int:
        return int(self.module.config.get_text_config().max_position_embeddings)  # Gemma 3 has an image configuration, too.


def load(path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LanguageModel:
    """Load a Hugging Face model by folder or hub name, in evaluation mode and with frozen parameters.

    `device` is read by `devices.devices_of`. A model for several devices is loaded into CPU memory first. Raises `ValueError`
    for a missing device, before anything is loaded.
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
    """Return `eager` for a model with soft-capped attention logits (Gemma 2), else None, the default.

    The default of transformers, torch's fused attention, silently leaves the cap out, which gives another model than vLLM's.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "eager" if capped else None


def checkpoint_fingerprint(path: str | Path) -> str:
    """Compute the SHA-256 of the checkpoint's weight files, or of its name if it is not a local folder."""
    digest = hashlib.sha256()
    files = sorted(Path(path).glob("*.safetensors"))
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest() if files else hashlib.sha256(str(path).encode()).hexdigest()
