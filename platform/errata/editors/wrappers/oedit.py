"""O-Edit and O-Edit+: wrappers that make a change orthogonal to earlier edits and to the model's knowledge.

Paper: O-Edit (arXiv 2410.11469). Its abstract, its reviews and a third-party port of the soft form describe two protected sets
of output directions, one of the accumulated edits, one of a gradient on general text ("implicit knowledge"). O-Edit penalises
the change's components in them, O-Edit+ projects them out after the solve. The rest is our choice:
    H   the leading left singular vectors of the sum S of all changes so far, as many as edits were made, up to `past_rank`;
    B   the leading ⌊β t⌋ left singular vectors, up to `knowledge_rank`, of the weights' gradient on plain text, measured
        once on the unedited model (`Moments.directions`), made orthogonal to H;
    O-Edit    adds  λ1 mean_j |cos(h_j, δ)| + λ2 mean_j |cos(b_j, δ)|  to the search for the target (λ1 = λ2 = 50);
    O-Edit+   U ← (I - [H B] [H B]ᵀ) U  of a change U Vᵀ.
Limit: a matrix has O output directions, so t (1 + β) edits fill it, and O-Edit+ then refuses further ones. Orthogonal output
directions do not stop old changes from answering new keys; their outputs still add up.
Remembers: the wrapped editor's state, and S. The parts of a change keep their rank.
O out-features, R past directions, Q knowledge directions, t edits so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from errata.delta.parts import LowRank, svd
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.accumulated import accumulate, accumulated_delta, with_accumulated
from errata.editors.closed_form.locate_then_edit import LocateThenEdit
from errata.editors.closed_form.rome import ROME
from errata.editors.closed_form.targets import OrthogonalityPenalty
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.editors.wrappers.wrapper import EditorWrapper, inner_state, wrap_state
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.model.prefix_cache import BatchCache


@dataclass(frozen=True)
class Protected(EditorWrapper):
    """Base class of both forms, with the protected directions.

    `knowledge_rate` is β; 0 needs no gradient and protects only the edits.
    """

    host: LocateThenEdit
    _: KW_ONLY
    knowledge_rate: float = 1.0
    past_rank: int | None = None
    knowledge_rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.host, LocateThenEdit):
            name = type(self.host).__name__
            raise ValueError(
                f"{type(self).__name__} wraps an editor that searches for targets, such as ROME or MEMIT, not {name}"
            )

    @classmethod
    def default_inner(cls) -> type[Editor]:
        return ROME

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        state = wrap_state(self.host.start(model, spec))
        directions = self.host.moments.directions if self.host.moments is not None else {}
        if missing := [name for name in spec.names if self.knowledge_rate and name not in directions]:
            raise ValueError(
                f"{type(self).__name__} needs the directions of {', '.join(missing)}: measure moments with directions=1 "
                "(jobs/moments.py), or set knowledge_rate to 0"
            )
        return state

    def directions(self, model: LanguageModel, state: EditorState, num_edits: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (H [O, R], B [O, Q]) by matrix, in unit vectors, for an edit after which there are `num_edits`."""
        total = accumulated_delta(state).parts
        num_known = min(int(self.knowledge_rate * num_edits), _limit(self.knowledge_rank))
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for matrix in find_matrices(model.module, self.modules).matrices:
            H_OR = B_OQ = torch.zeros(matrix.num_out, 0, dtype=torch.float64, device=model.device)
            if matrix.name in total:
                left_OR, values_R, _ = svd(total[matrix.name])
                rank = min(state.num_edits, int((values_R > 1e-6 * values_R[:1]).sum()), _limit(self.past_rank))
                H_OR = left_OR[:, :rank].to(model.device)
            if num_known and self.host.moments is not None:
                B_OQ = self.host.moments.directions[matrix.name][:, :num_known].to(H_OR)
                B_OQ = unit(B_OQ - H_OR @ (H_OR.T @ B_OQ))
            found[matrix.name] = (H_OR, B_OQ)
        return found


def _limit(rank: int | None) -> float | int:
    return float("inf") if rank is None else rank


@dataclass(frozen=True, kw_only=True)
class OEdit(Protected):
    """O-Edit; `past_weight` is λ1, `knowledge_weight` λ2."""

    past_weight: float = 50.0
    knowledge_weight: float = 50.0

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]:
        directions = self.directions(model, state, state.num_edits + len(batch))
        *_, (H_OR, B_OQ) = directions.values()  # Those of the last matrix, where the target is.
        penalties = [
            OrthogonalityPenalty(w, b) for w, b in ((self.past_weight, H_OR), (self.knowledge_weight, B_OQ)) if b.shape[1]
        ]
        delta, after = self.host.edit_through(model, batch, inner_state(state), transform, cache, penalties)
        return delta, with_accumulated(wrap_state(after), accumulate(state, delta))


@dataclass(frozen=True, kw_only=True)
class OEditPlus(Protected):
    """O-Edit+; it refuses a batch if the projection leaves less than the share `least_kept` of a change's norm."""

    least_kept: float = 1e-3

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]:
        directions = self.directions(model, state, state.num_edits + len(batch))

        def free(delta: WeightDelta) -> WeightDelta:
            left = orthogonal(delta, directions)
            for name, norm in delta.norms().items():
                if left.parts[name].norm() < self.least_kept * norm:
                    raise EditRejected(
                        f"{name} has no free output directions left after {state.num_edits} edits: roll back, or set "
                        "past_rank and knowledge_rank lower",
                        field="edits",
                        code=Code.OUT_OF_CAPACITY,
                    )
            return transform(left)

        delta, after = self.host.edit_through(model, batch, inner_state(state), free, cache)
        return delta, with_accumulated(wrap_state(after), accumulate(state, delta))


def orthogonal(delta: WeightDelta, directions: Mapping[str, Sequence[Tensor]]) -> WeightDelta:
    """Project a low-rank delta off the span of each matrix's directions, which are columns of [O, R]."""
    parts: dict[str, Any] = {}
    for name, part in delta:
        assert isinstance(part, LowRank), "locate-then-edit editors return factors"
        left_OR, values_R, _ = torch.linalg.svd(torch.cat(tuple(directions[name]), 1), full_matrices=False)
        taken_OR, U_OR = left_OR[:, values_R > 1e-6].to(part.U_OR.device), part.U_OR.double()
        parts[name] = LowRank((U_OR - taken_OR @ (taken_OR.T @ U_OR)).float(), part.V_IR)
    return WeightDelta(parts)


def unit(columns_OQ: Tensor) -> Tensor:
    """Normalise the columns, without those of zero length."""
    norms_Q = columns_OQ.norm(dim=0)
    return columns_OQ[:, norms_Q > 1e-6] / norms_Q[norms_Q > 1e-6]
