"""Weight delta: the result of an edit, which is the change of each edited matrix.

O out-features, I in-features, R rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from errata.delta.parts import Dense, LowRank, Part, Series, Sparse, compacted, on_device, part_of, pieces, sum_of
from errata.model.devices import device_of


@dataclass(frozen=True)
class WeightDelta:
    """The change of some matrices of a model, by module name; added up in fp32 and cast once."""

    parts: Mapping[str, Part]

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        return iter(self.parts.items())

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for _, part in self for t in part.tensors().values())

    @property
    def dense_bytes(self) -> int:
        """Size of the same change as dense fp32 matrices."""
        return sum(4 * part.shape[0] * part.shape[1] for _, part in self)

    def norms(self) -> dict[str, float]:
        return {name: part.norm() for name, part in self}

    def ranks(self) -> dict[str, int]:
        return {name: part.rank for name, part in self}

    @property
    def is_finite(self) -> bool:
        tensors = [tensor for _, part in self for tensor in part.tensors().values() if tensor.is_floating_point()]
        # The result is read once, because each read synchronises a GPU.
        return not tensors or bool(
            torch.stack([torch.isfinite(tensor).all().to(tensors[0].device) for tensor in tensors]).all()
        )

    def save(self, path: str | Path) -> None:
        save_file(self.to_tensors(), str(path))

    @classmethod
    def load(cls, path: str | Path, device: Any = "cpu") -> WeightDelta:
        """Read a file that `save` wrote. Raises `SafetensorError` or `ValueError` for any other file."""
        return cls.from_tensors(load_file(str(path), device=str(device)))

    def to_tensors(self) -> dict[str, Tensor]:
        """Copy every tensor to the CPU, named `module|key`. Copies, because safetensors refuses tensors that share memory."""
        return {f"{n}|{k}": t.detach().cpu().contiguous().clone() for n, part in self for k, t in part.tensors().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> WeightDelta:
        """Build a delta from the result of `to_tensors`. Raises `ValueError` for other tensors."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("|")
            grouped.setdefault(name, {})[part] = tensor
        return cls({name: part_of(found) for name, found in grouped.items()})

    def scaled(self, factor: float) -> WeightDelta:
        return WeightDelta({name: part.scaled(factor) for name, part in self})

    def compact(self, tolerance: float = 1e-6) -> WeightDelta:
        """Reduce the rank of low-rank parts, with a Frobenius error of at most `tolerance` times each part's norm.

        QR of both factors, then an SVD of the core in fp64, which is exact up to the cut. Other kinds are not changed.
        """
        return WeightDelta({n: compacted(p, tolerance) if isinstance(p, LowRank) else p for n, p in self})

    def folded(self) -> WeightDelta:
        """Turn parts into dense matrices if their factors are larger than these."""
        return WeightDelta({n: p if p.rank * sum(p.shape) < p.shape[0] * p.shape[1] else Dense(p.dense()) for n, p in self})

    def on_devices_of(self, model: nn.Module) -> WeightDelta:
        """Move each part to the device of its module."""
        return WeightDelta({name: on_device(part, device_of(model, name)) for name, part in self})

    def digest(self) -> str:
        """Compute the SHA-256 of names, shapes and bytes."""
        state = hashlib.sha256()
        for name, part in sorted(self.parts.items()):
            for key, tensor in sorted(part.tensors().items()):
                update_digest(state, name, key, tensor)
        return state.hexdigest()


def update_digest(state: Any, name: str, key: str, tensor: Tensor) -> None:
    """Add a tensor with its name, key and shape to a digest of hashlib's."""
    state.update(json.dumps([name, key, list(tensor.shape), str(tensor.dtype)]).encode())
    as_bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)  # NumPy has no bf16.
    state.update(as_bytes.numpy().data)


def chained(deltas: Sequence[WeightDelta]) -> WeightDelta:
    """Add deltas. Low-rank parts are concatenated, or added if they share V; a sum with other kinds is dense."""
    return WeightDelta({name: sum_of(found) for name, found in _by_name(deltas).items()})


def in_series(deltas: Sequence[WeightDelta]) -> WeightDelta:
    """Join deltas into one with the same bits as their sum in this order."""
    found = _by_name(deltas)
    return WeightDelta({name: parts[0] if len(parts) == 1 else Series(tuple(parts)) for name, parts in found.items()})


def _by_name(deltas: Sequence[WeightDelta]) -> dict[str, list[LowRank | Sparse | Dense]]:
    parts: dict[str, list[LowRank | Sparse | Dense]] = {}
    for delta in deltas:
        for name, part in delta:
            parts.setdefault(name, []).extend(pieces(part))
    return parts
