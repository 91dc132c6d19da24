"""The matrices of a model that editors may change."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Matrices of one input, which serving engines fuse. Phi-3's `qkv_proj` and `gate_up_proj` are one matrix in the checkpoint.
FUSED_GROUPS: tuple[tuple[str, ...], ...] = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))


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
