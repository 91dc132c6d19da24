"""The editable matrices of a model: names, shapes, orientation, and groups that serving engines fuse."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Serving engines fuse these matrices, which share an input. Phi-3's `qkv_proj` and `gate_up_proj` are fused in the checkpoint.
FUSED_GROUPS: tuple[tuple[str, ...], ...] = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))


@dataclass(frozen=True)
class MatrixSpec:
    """An editable matrix: module name and sizes; `transposed` if it is stored as [in, out], as in GPT-2's Conv1D."""

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
        """Convert between storage and [out, in]. The conversion is its own inverse."""
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
        """The names with `*` for each number, so that matrices of different blocks have one name."""
        return tuple(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in self.names))

    def __getitem__(self, name: str) -> MatrixSpec:
        return next(matrix for matrix in self.matrices if matrix.name == name)


def find_matrices(module: nn.Module, patterns: Iterable[str]) -> ModelSpec:
    """Find the editable matrices whose name ends with one of `patterns`, such as `layers.3.mlp.down_proj`; `*` is one number.

    Raises `ValueError` with each pattern that matches nothing, and with the names that exist.
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
    """Find every linear module of the decoder.

    The output embedding is not editable, because many models tie it to the input embedding. Neither are image encoders, whose
    modules have the same last names.
    """
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
    """Map each name to the first of `names` with the same input. Matrices of one fused group share their input."""
    names = tuple(names)
    return {name: next(other for other in names if other in fused_partners(name)) for name in names}


def fused_partners(name: str) -> tuple[str, ...]:
    """Return the fused group of a matrix, including itself: `…mlp.up_proj` gives gate and up."""
    stem, _, last = name.rpartition(".")
    for group in FUSED_GROUPS:
        if last in group:
            return tuple(f"{stem}.{member}" for member in group)
    return (name,)
