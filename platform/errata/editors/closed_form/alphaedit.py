"""AlphaEdit: MEMIT restricted to the null space of the model's keys, with past keys protected.

Paper: AlphaEdit (arXiv 2410.02355). Equations: multi_layer.py with A = λ on the null space of C, so P = (λ + Σ past k kᵀ)⁻¹
there and 0 elsewhere; the published primal is (N (K Kᵀ + past) + λ I)⁻¹ N K Rᵀ, N the projector.
Deviations: the projector comes from a symmetric eigensolver in fp64; its threshold may be relative to the largest eigenvalue,
because an absolute one selects a different number of directions in every model and layer.
Remembers: the contexts and, unless `memory` is 0, the keys of past edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from errata.editors.closed_form.moments import null_space
from errata.editors.closed_form.multi_layer import MultiLayerEditor


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(MultiLayerEditor):
    """AlphaEdit; `ridge` is λ, `threshold` the eigenvalue of C below which a direction is in the null space.

    `memory` is the weight of past keys.
    """

    ridge: float = 10.0
    threshold: float = 2e-2
    relative: bool = False
    memory: float = 1.0

    @property
    def past_weight(self) -> float:
        return self.memory

    def inverse_covariances(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: null_space(C_II, self.threshold, self.relative) / self.ridge for name, C_II in moments.items()}
