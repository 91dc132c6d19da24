"""Joint delta: one change of the weights and of the memory beside them, which a version makes together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from errata.delta.memory_delta import ABOUT, MemoryDelta
from errata.delta.parts import Part
from errata.delta.weight_delta import WeightDelta

OF_MEMORY = "memory|"  # Before the names of a memory's tensors in a file; no module of a model is called so.


@dataclass(frozen=True, eq=False)
class JointDelta:
    """A change of matrices, and a change of a memory's records. A version has both, or the parent's, and nothing between."""

    weights: WeightDelta
    memory: MemoryDelta

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        """Iterate over the changed matrices, as over those of a change of weights."""
        return iter(self.weights)

    @property
    def num_bytes(self) -> int:
        return self.weights.num_bytes + self.memory.num_bytes

    @property
    def dense_bytes(self) -> int:
        """The bytes of the changed matrices as a whole."""
        return self.weights.dense_bytes

    def norms(self) -> dict[str, float]:
        return self.weights.norms()

    def ranks(self) -> dict[str, int]:
        return self.weights.ranks()

    @property
    def is_finite(self) -> bool:
        return self.weights.is_finite and self.memory.is_finite

    def save(self, path: str | Path) -> None:
        save_file(self.to_tensors(), str(path))

    def to_tensors(self) -> dict[str, Tensor]:
        return {**self.weights.to_tensors(), **self.memory.to_tensors()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> JointDelta:
        """Build a delta from the result of `to_tensors`. Raises `ValueError` for other tensors."""
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(OF_MEMORY)}
        memory = {name: tensor for name, tensor in tensors.items() if name.startswith(OF_MEMORY)}
        return cls(WeightDelta.from_tensors(weights), MemoryDelta.from_tensors(memory))

    def on_devices_of(self, model: nn.Module) -> JointDelta:
        return replace(self, weights=self.weights.on_devices_of(model), memory=self.memory.on_devices_of(model))

    def digest(self) -> str:
        """Compute the SHA-256 of the digests of both changes."""
        return hashlib.sha256(f"{self.weights.digest()}{self.memory.digest()}".encode()).hexdigest()


def is_joint(tensors: Mapping[str, Tensor]) -> bool:
    """Say if tensors are of weights and of a memory."""
    return ABOUT in tensors and any(not name.startswith(OF_MEMORY) for name in tensors)
