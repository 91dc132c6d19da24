"""AlphaEdit: as MEMIT, but only in directions that the model's own keys hardly have, and keeping what earlier batches wrote.

Paper: AlphaEdit (arXiv 2410.02355). Equations: located.py with A = λ on the null space of C, so P = (λ + Σ past k kᵀ)⁻¹
there and 0 elsewhere; the published primal is (N (K Kᵀ + past) + λ I)⁻¹ N K Rᵀ, N the projector.
Deviations: the projector by a symmetric eigensolver in fp64; its threshold may be relative to the largest eigenvalue, as an
absolute one means another number of directions in every model and layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from errata.editors.closed_form.located import Located
from errata.editors.closed_form.moments import null_space
from errata.editors.closed_form.targets import Search


@dataclass(frozen=True)
class AlphaEdit(Located):
    """`ridge` is λ, `threshold` the eigenvalue of C below which a direction is free."""

    ridge: float = 10.0
    threshold: float = 2e-2
    relative: bool = False
    memory: float = 1.0

    @classmethod
    def llama3_8b(cls, **fields: Any) -> AlphaEdit:
        modules = tuple(f"layers.{layer}.mlp.down_proj" for layer in range(4, 9))
        return replace(cls(modules, Search()), **fields)

    @classmethod
    def gpt_j(cls, **fields: Any) -> AlphaEdit:
        modules = tuple(f"h.{layer}.mlp.fc_out" for layer in range(3, 9))
        return replace(cls(modules, Search(learning_rate=0.5)), **fields)

    @classmethod
    def gpt2_xl(cls, **fields: Any) -> AlphaEdit:
        modules = tuple(f"h.{layer}.mlp.c_proj" for layer in range(13, 18))
        return replace(cls(modules, Search(num_steps=20, learning_rate=0.5)), **fields)

    @property
    def remembers(self) -> float:
        return self.memory

    def bases(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: null_space(C_II, self.threshold, self.relative) / self.ridge for name, C_II in moments.items()}
