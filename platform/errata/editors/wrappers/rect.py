"""RECT: a wrapper that keeps only the entries of a change that are largest relative to the weight.

Paper: Model Editing Harms General Abilities (arXiv 2401.04700), RECT. Equation: with W the weights as they are,
ρ = |ΔW| / (|W| + 1e-8) entry by entry; the share `kept` of the entries with the largest ρ stays, the others become zero.
Deviations: it wraps any editor. `kept` is 0.4 as in AlphaEdit's port; the authors' own snippet keeps 0.2.
Remembers: the wrapped editor's state. A low-rank change becomes one of full rank: sparse parts, or dense where that is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from errata.delta.parts import Dense, Sparse
from errata.delta.side_branch import weight_now
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch
from errata.editors.closed_form.memit import MEMIT
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.model.prefix_cache import BatchCache


@dataclass(frozen=True, kw_only=True)
class RECT(EditorWrapper):
    """RECT; `kept` is the share of entries that stay."""

    kept: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.kept <= 1:
            raise ValueError(f"kept is a share of the entries, above 0 and at most 1, but is {self.kept}")

    @classmethod
    def default_inner(cls) -> type[Editor]:
        return MEMIT

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
        return self.host.edit_through(model, batch, state, lambda delta: transform(rect(delta, weights, self.kept)), cache)


def rect(delta: WeightDelta, weights: Mapping[str, Tensor], kept: float) -> WeightDelta:
    """Return `delta` with the share `kept` of its entries; `weights` are [O, I], without the delta."""
    return WeightDelta({name: _rect(part.dense(), weights[name], kept) for name, part in delta})


def _rect(change_OI: Tensor, weight_OI: Tensor, kept: float) -> Sparse | Dense:
    ratio_N = (change_OI.abs() / (weight_OI.to(change_OI).abs() + 1e-8)).flatten()
    index_N = ratio_N.topk(max(1, round(kept * len(ratio_N)))).indices.sort().values
    rows, columns = change_OI.shape
    sparse = Sparse(index_N, change_OI.flatten()[index_N], (rows, columns))
    # An index takes 8 bytes, a value 4.
    return sparse if 3 * len(index_N) < len(ratio_N) else Dense(sparse.dense())
