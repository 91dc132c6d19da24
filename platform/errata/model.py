"""Load a model, and name the matrices of it that may be edited: their shape, orientation and fused partners."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errata.devices import devices_of, spread

# Matrices of one input, which serving engines fuse. Phi-3's `qkv_proj` and `gate_up_proj` are one matrix in the checkpoint.
FUSED_GROUPS: tuple[tuple[str, ...], ...] = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))


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


@dataclass(frozen=True)
class MatrixSpec:
    """One editable matrix: module name, sizes, and whether it is stored as [in, out] (GPT-2's Conv1D)."""

    name: str
    num_in: int
    num_out: int
    transposed: bool = False

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_out, self.num_in

    def oriented(self, weight: Tensor) -> Tensor:
        """Between storage and [out, in]; its own inverse."""
        return weight.T if self.transposed else weight


@dataclass(frozen=True)
class ModelSpec:
    """The editable matrices, in forward order."""

    matrices: tuple[MatrixSpec, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(matrix.name for matrix in self.matrices)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names with `*` for each number: one for the matrices that differ in nothing but their block."""
        return tuple(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in self.names))

    def __getitem__(self, name: str) -> MatrixSpec:
        return next(matrix for matrix in self.matrices if matrix.name == name)


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


def find_matrices(module: nn.Module, patterns: Iterable[str]) -> ModelSpec:
    """The editable matrices whose name ends with one of `patterns` (such as `layers.3.mlp.down_proj`; `*` is one number).

    Raises `ValueError` naming each pattern that fits nothing, and what there is.
    """
    patterns = tuple(patterns)
    expressions = {p: re.compile(r"(?:^|\.)" + re.escape(p).replace(r"\*", r"\d+") + "$") for p in patterns}
    editable = editable_matrices(module)
    found = [m for m in editable.matrices if any(expression.search(m.name) for expression in expressions.values())]
    missing = [p for p, expression in expressions.items() if not any(expression.search(m.name) for m in found)]
    if missing or not found:
        there = ", ".join(editable.kinds) or "nothing"
        raise ValueError(
            f"no linear module of the model is named {', '.join(missing) or '(no pattern given)'}; what can be edited: {there}"
        )
    return ModelSpec(tuple(found))


def editable_matrices(module: nn.Module) -> ModelSpec:
    """Every linear module of the decoder. Neither the output embedding, which many models share with the input's, nor what
    reads images beside the decoder, where modules have the same last names."""
    decoder_of: Any = getattr(module, "get_decoder", lambda: module)
    inside, found = set(decoder_of().modules()), list[MatrixSpec]()
    for name, child in module.named_modules():
        if child in inside and _is_linear(child):
            transposed = not isinstance(child, nn.Linear)
            rows, columns = child.weight.shape  # type: ignore[misc]
            found.append(MatrixSpec(name, rows if transposed else columns, columns if transposed else rows, transposed))
    return ModelSpec(tuple(found))


def _is_linear(child: nn.Module) -> bool:
    return isinstance(child, nn.Linear) or type(child).__name__ == "Conv1D"


def input_sources(names: Iterable[str]) -> dict[str, str]:
    """Each name with the first of `names` that reads the same input: matrices that an engine fuses have one input."""
    names = tuple(names)
    return {name: next(other for other in names if other in fused_partners(name)) for name in names}


def fused_partners(name: str) -> tuple[str, ...]:
    """The whole fused group that a matrix belongs to, itself included: `…mlp.up_proj` gives gate and up."""
    stem, _, last = name.rpartition(".")
    for group in FUSED_GROUPS:
        if last in group:
            return tuple(f"{stem}.{member}" for member in group)
    return (name,)
