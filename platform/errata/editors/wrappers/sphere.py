"""SPHERE: a wrapper that weakens a change along the principal directions of a matrix' neurons on their hypersphere.

Paper: Energy-Regularized Sequential Model Editing on Hyperspheres (arXiv 2510.01172). Equations: a neuron is a row w_o of the
matrix W as it is, and only its direction counts,

    C = 1/O Σ_o ŵ_o ŵ_oᵀ,  ŵ_o = w_o / |w_o|,   ΔW ← ΔW (I - α U Uᵀ),

with U the fewest leading eigenvectors of C whose eigenvalues reach the share η of their sum, so that the angles between the
neurons, and with them the hyperspherical energy, change less.
Deviations: it wraps any editor; U comes from the singular vectors of the rows ŵ, in fp64.
Remembers: the wrapped editor's state. A low-rank change keeps its rank, any other becomes dense.
O out-features, I in-features, R principal directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.delta.parts import Dense, LowRank, Part
from errata.delta.side_branch import weight_now
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.model.prefix_cache import BatchCache


@dataclass(frozen=True, kw_only=True)
class SPHERE(EditorWrapper):
    """SPHERE; `energy` is η, `strength` α. The published values are 0.5 and 0.5 over AlphaEdit, 0.5 and 0.8 over others."""

    energy: float = 0.5
    strength: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("energy", "strength"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, above 0 and at most 1, but is {getattr(self, name)}")

    @classmethod
    def default_inner(cls) -> type[Editor]:
        return AlphaEdit

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]:
        spec = find_matrices(model.module, self.modules)
        weights = {matrix.name: weight_now(model.module, matrix) for matrix in spec.matrices}
        if broken := [name for name, weight_OI in weights.items() if not bool(torch.isfinite(weight_OI).all())]:
            raise EditRejected(f"the weights of {', '.join(broken)} are not finite", field="edits", code=Code.NOT_FINITE)
        principal = {name: principal_directions(weight_OI, self.energy) for name, weight_OI in weights.items()}
        return self.host.edit_through(
            model, batch, state, lambda delta: transform(weakened(delta, principal, self.strength)), cache
        )


def principal_directions(weight_OI: Tensor, energy: float) -> Tensor:
    """Return the principal directions of the rows of a matrix, [I, R] in fp64, that have the share `energy` of their sum."""
    rows_OI = torch.nn.functional.normalize(weight_OI.double(), dim=1)
    _, values_R, directions_RI = torch.linalg.svd(rows_OI, full_matrices=False)
    energy_R = values_R.square().cumsum(0)
    num_kept = int((energy_R < energy * energy_R[-1] * (1 - 1e-12)).sum()) + 1
    return directions_RI[:num_kept].T


def weakened(delta: WeightDelta, principal: Mapping[str, Tensor], strength: float) -> WeightDelta:
    """Return a delta without the share `strength` of what it writes along each matrix' principal directions, [I, R]."""

    def less(rows_NI: Tensor, directions_IR: Tensor) -> Tensor:
        rows, directions_IR = rows_NI.double(), directions_IR.to(rows_NI.device)
        return (rows - strength * (rows @ directions_IR) @ directions_IR.T).to(rows_NI)

    parts: dict[str, Part] = {}
    for name, part in delta:
        if isinstance(part, LowRank):
            parts[name] = LowRank(part.U_OR, less(part.V_IR.T, principal[name]).T)
        else:
            parts[name] = Dense(less(part.dense(), principal[name]))
    return WeightDelta(parts)
