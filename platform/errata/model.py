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

# Matrices that a serving engine fuses into one; a part of a group reloaded alone leaves the rest silently wrong.
FUSED_GROUPS: tuple[tuple[str, ...], ...] = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, its parameters frozen."""

    module: Any
    tokenizer: Any
    path: str

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def max_tokens(self) -> int:
        return int(self.module.config.max_position_embeddings)


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

    def __getitem__(self, name: str) -> MatrixSpec:
        return next(matrix for matrix in self.matrices if matrix.name == name)


def load(path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LanguageModel:
    """A Hugging Face model by folder or hub name, in evaluation mode, with no parameter that takes a gradient."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    module: Any = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype)
    module.to(device).eval().requires_grad_(False)
    return LanguageModel(module, tokenizer, str(path))


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
    """The linear modules whose name ends with one of `patterns` (such as `layers.3.mlp.down_proj`; `*` is one number).

    Raises `ValueError` naming each pattern that fits nothing.
    """
    patterns = tuple(patterns)
    expressions = {p: re.compile(r"(?:^|\.)" + re.escape(p).replace(r"\*", r"\d+") + "$") for p in patterns}
    found: list[MatrixSpec] = []
    for name, child in module.named_modules():
        if any(expression.search(name) for expression in expressions.values()) and _is_linear(child):
            transposed = not isinstance(child, nn.Linear)
            rows, columns = child.weight.shape  # type: ignore[misc]
            found.append(MatrixSpec(name, rows if transposed else columns, columns if transposed else rows, transposed))
    missing = [p for p, expression in expressions.items() if not any(expression.search(m.name) for m in found)]
    if missing or not found:
        raise ValueError(f"no linear module of the model is named {', '.join(missing) or '(no pattern given)'}")
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
