"""ROME and R-ROME: a rank-one change of one matrix that maps the subject's key to the target value.

Papers: ROME (arXiv 2202.05262), R-ROME (arXiv 2403.07175). With C the second moment of the matrix's keys, k̄ the mean of an
edit's keys over its contexts, k the key in the bare prompt, and v* the target of the matrix's output there:

    ROME     u = C⁻¹ k̄,   ΔW = (v* - W k) uᵀ / (uᵀ k)
    R-ROME   u = C⁻¹ k̄,   ΔW = (v* - W k̄) uᵀ / (uᵀ k̄), W k̄ the mean of the outputs; or k in place of every k̄

ROME mixes two keys: where they differ, uᵀ k is small and the change is huge. This published flaw ("disabling edits") is kept.
Deviations: C⁻¹ by Cholesky in fp64; the targets of a batch are found together on the model before the batch, and then written
in order, each on top of the earlier ones (with batches of one this is the published order).
Remembers: the contexts; nothing of past edits. n edits, I in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch
from errata.editors.closed_form.contexts import tokenise_at_subject
from errata.editors.closed_form.locate_then_edit import LocateThenEdit, inputs_at, output_at
from errata.editors.closed_form.moments import inverse
from errata.editors.closed_form.targets import OrthogonalityPenalty, Search, find_targets
from errata.editors.solve import KeyPreconditioner
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.timing import timed

ROME_SEARCH = Search(num_steps=20, learning_rate=0.5, decay=0.5, clamp=4.0)


@dataclass(frozen=True, kw_only=True)
class ROME(LocateThenEdit):
    """ROME; `use_moments` False takes the identity for C, as the public Llama-3 setting does.

    `floor` is added to the diagonal of C.
    """

    search: Search = ROME_SEARCH
    context_lengths: tuple[int, ...] = (5, 5, 10, 10)
    bare_share: float | None = None
    use_moments: bool = True
    floor: float = 0.0

    single_matrix: ClassVar[bool] = True

    @property
    def needs_moments(self) -> bool:
        return self.use_moments

    def inverse_covariances(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: inverse(C_II, 1.0, self.floor) for name, C_II in moments.items()}

    def write(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        preconditioners: Mapping[str, KeyPreconditioner],
        penalties: Sequence[OrthogonalityPenalty] = (),
    ) -> WeightDelta:
        (name,) = find_matrices(model.module, self.modules).names
        wanted_nO = find_targets(model, batch, name, self.contexts(state), self.search, penalties).wanted_nD
        with timed("capture"):
            direction_nI, keys_nI, now_nO = self.keys(model, batch, state, name)
        with timed("solve"), torch.no_grad():
            u_nI = preconditioners[name].apply(direction_nI) if name in preconditioners else direction_nI.double()
            return WeightDelta({name: one_by_one(u_nI, keys_nI.double(), (wanted_nO - now_nO).double())})

    def keys(self, model: LanguageModel, batch: EditBatch, state: EditorState, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for each edit, the key that gives u, the key that the target answers, and the present output for that key."""
        contexts = self.contexts(state)
        in_context, bare = tokenise_at_subject(model, batch, contexts), tokenise_at_subject(model, batch, contexts.bare())
        mean_nI = in_context.mean(inputs_at(model, in_context, [name])[name])
        first_n = bare.first_n
        return mean_nI, inputs_at(model, bare, [name])[name][first_n], output_at(model, bare, name)[first_n]


@dataclass(frozen=True, kw_only=True)
class RROME(ROME):
    """R-ROME: one key in all places, that of the bare prompt with `prompt_keys`, else the mean over the contexts."""

    prompt_keys: bool = False

    def keys(self, model: LanguageModel, batch: EditBatch, state: EditorState, name: str) -> tuple[Tensor, Tensor, Tensor]:
        contexts = self.contexts(state)
        in_context = tokenise_at_subject(model, batch, contexts.bare() if self.prompt_keys else contexts)
        mean_nI = in_context.mean(inputs_at(model, in_context, [name])[name])
        return mean_nI, mean_nI, in_context.mean(output_at(model, in_context, name))


def one_by_one(u_nI: Tensor, keys_nI: Tensor, missing_nO: Tensor) -> LowRank:
    """Return Σ_j r_j u_jᵀ / (u_jᵀ k_j), where r_j is what is missing at k_j after the earlier changes."""
    factors: list[Tensor] = []
    answers_nn = u_nI @ keys_nI.T  # [j, i]: the response of change j to the key of edit i.
    for j in range(len(keys_nI)):
        moved_O = sum((answers_nn[i, j] * factors[i] for i in range(j)), torch.zeros_like(missing_nO[j]))
        factors.append((missing_nO[j] - moved_O) / answers_nn[j, j])
    return LowRank(torch.stack(factors, 1).float(), u_nI.T.float())
