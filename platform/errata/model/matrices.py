"""The editable matrices of a model: names, shapes, orientation, and groups that serving engines fuse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# Serving engines fuse these matrices, which share an input. Phi-3's `qkv_proj` and `gate_up_proj` are fused in the checkpoint.
FUSED_GROUPS: tuple[tuple[str, ...], ...] = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))
PLAIN_TYPES: set[type] = {Tensor, nn.Parameter, FakeTensor}  # Of a weight that is the matrix itself, and no code for it.


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

    Raises `ValueError` with each pattern that matches nothing, and with the names that exist; and for a matrix that is
    quantised.
    """
    patterns, editable = tuple(patterns), editable_matrices(module)
    if (missing := unmatched(editable.names, patterns)) or not patterns:
        raise ValueError(no_such_modules(missing, editable))
    expressions = list(map(_expression, patterns))
    found = [matrix for matrix in editable.matrices if any(one.search(matrix.name) for one in expressions)]
    for matrix in found:
        _check_is_plain(matrix.name, module.get_submodule(matrix.name))
    return ModelSpec(tuple(found))


def unmatched(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the patterns that no name ends with."""
    names = tuple(names)
    return [pattern for pattern in dict.fromkeys(patterns) if not any(map(_expression(pattern).search, names))]


def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(r"(?:^|\.)" + re.escape(pattern).replace(r"\*", r"\d+") + "$")


def no_such_modules(missing: Sequence[str], there: ModelSpec) -> str:
    """Make the sentence about patterns that match nothing: the closest names, and all kinds of names."""
    close = [name for pattern in missing for name in closest(pattern, there.names, 0.6)[:1]]
    meant = f"; the closest are {', '.join(dict.fromkeys(close))}" if close else ""
    named = ", ".join(missing) or "(no pattern given)"
    return f"no linear module of the model is named {named}; what can be edited: {', '.join(there.kinds) or 'nothing'}{meant}"


def closest(pattern: str, names: Iterable[str], cutoff: float) -> list[str]:
    """Return the ends of names that are most like the pattern, and as long in parts, the best first."""
    num_parts = pattern.count(".") + 1
    ends = dict.fromkeys(".".join(name.split(".")[-num_parts:]) for name in names)
    return get_close_matches(pattern, list(ends), n=3, cutoff=cutoff)


def _check_is_plain(name: str, module: Any) -> None:
    """Raise `ValueError` for a weight that is not the matrix itself: bitsandbytes' and FP8 modules are `nn.Linear`, too."""
    weight = module.weight
    is_plain = type(weight) in PLAIN_TYPES and weight.dim() == 2
    if not is_plain or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise ValueError(
            f"{name} is a {type(module).__name__} whose weight is a {type(weight).__name__} of {weight.dtype}, not a plain "
            "matrix of floating-point numbers, and cannot be edited: load the unquantised checkpoint of the same model"
        )


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
            if child.weight.dim() != 2:  # type: ignore[operator]
                _check_is_plain(name, child)
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
