"""A causal language model with its tokenizer, loaded from a folder or the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from errata.model.checkpoint import check_checkpoint, folder_of
from errata.model.devices import devices_of, spread
from errata.model.renderer import Renderer
from errata.model.tokenizer_files import check_tokenizer, tokenizer_options

# Of a checkpoint's generation configuration, what vLLM follows in a greedy answer; transformers would follow the rest, too.
SERVED_DEFAULTS = ("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty")


_TOKENIZERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # By module.


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, its parameters frozen."""

    module: Any
    tokenizer: Any
    path: str

    def __post_init__(self) -> None:
        _TOKENIZERS[self.module] = self.tokenizer

    @property
    def device(self) -> torch.device:
        """The device that takes the tokens: the first one, if the model is spread over several."""
        return next(self.module.parameters()).device

    @cached_property
    def renderer(self) -> Renderer:
        """The renderer of prompts and answers as the served model reads and writes them."""
        return Renderer(self.tokenizer, self.end_ids)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer, from the tokenizer and from the model's generation configuration."""
        return _end_ids(self.module, self.tokenizer)

    @property
    def repetition_penalty(self) -> float:
        """The penalty on tokens that occur already, by which the served model generates unless a request says otherwise."""
        return float(self.module.generation_config.repetition_penalty or 1.0)

    @property
    def max_tokens(self) -> int:
        return int(self.module.config.get_text_config().max_position_embeddings)  # Gemma 3 has an image configuration, too.


def renderer_of(module: Any) -> Renderer:
    """Make the renderer of a module that is part of a `LanguageModel`, of the newest one if there are several."""
    tokenizer = _TOKENIZERS[module]
    return Renderer(tokenizer, _end_ids(module, tokenizer))


def renderer_at(path: str | Path) -> Renderer:
    """Make the renderer of a checkpoint without loading its weights; it is equal to that of the loaded model."""
    from transformers import AutoConfig, GenerationConfig

    folder = str(folder_of(path))
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:  # There is no such file.
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    tokenizer = _tokenizer(folder)
    return Renderer(tokenizer, _with_end_of_text(generation.eos_token_id, tokenizer))


def _end_ids(module: Any, tokenizer: Any) -> frozenset[int]:
    return _with_end_of_text(module.generation_config.eos_token_id, tokenizer)


def _with_end_of_text(configured: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None)


def _tokenizer(folder: str) -> Any:
    """Load a checkpoint's tokenizer. Raises `ValueError` if it cannot be used."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
    check_tokenizer(tokenizer, folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load(path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LanguageModel:
    """Load a Hugging Face model by its folder, or by its name in the cache, in evaluation mode and with frozen parameters.

    `device` is read by `devices.devices_of`. A model for several devices is loaded into CPU memory first. Raises `ValueError`
    for a missing device, and for a checkpoint or tokenizer that cannot be used, before weights are loaded.
    """
    devices, folder = devices_of(device), str(check_checkpoint(path))
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer(folder)
    attention = attention_for(AutoConfig.from_pretrained(folder))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    module, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would fill them with random numbers
        raise ValueError(f"{folder} lacks {len(missing)} tensors of the model, such as {missing[0]}: copy the whole checkpoint")
    module.eval().requires_grad_(False)
    own = module.generation_config
    module.generation_config = GenerationConfig(**{name: getattr(own, name) for name in SERVED_DEFAULTS})
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
    """Compute the SHA-256 of the checkpoint's weight files. Raises `ValueError` if it has none on this machine."""
    digest, folder = hashlib.sha256(), folder_of(path)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ValueError(f"{folder} holds no file of weights (model.safetensors)")
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
