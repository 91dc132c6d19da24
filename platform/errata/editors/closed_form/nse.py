"""NSE: MEMIT with past keys, targets found on the unedited model, selected neurons, and repeated passes.

Paper: NSE (arXiv 2410.04045). Equations: multi_layer.py with A = λ C, and
  rewinding   the targets Z of every edit are found on the model before the first edit;
  neurons     in each matrix only the inputs J with the largest Σ_j |k_j| change, up to a share p of the sum over all inputs:
              A and the past keys are restricted to J, and rows of ΔWᵀ outside J are zero;
  iteration   facts with α < |z - h| < upper are written again, until none is left or after `max_iterations` - 1 passes.
Deviations: an edit whose target is `upper` or further away is refused (public code skips it silently; in later passes it is
left unchanged); with `relative`, α and upper are in units of |h|, because absolute ones depend on the scale of the model.
Remembers: the contexts, past keys, and the sum of all changes (to look back at the unedited model).
n edits, I in-features, J selected in-features, D features of a block's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta, chained
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.accumulated import accumulate, accumulated_delta, with_accumulated
from errata.editors.closed_form.contexts import Contexts, tokenise_at_subject
from errata.editors.closed_form.locate_then_edit import block_of, output_at
from errata.editors.closed_form.moments import inverse
from errata.editors.closed_form.multi_layer import MultiLayerEditor, write_layers
from errata.editors.closed_form.targets import OrthogonalityPenalty, find_targets
from errata.editors.normal_equations import NormalEquations
from errata.editors.past_keys import past_keys
from errata.editors.solve import KeyGram, KeyPreconditioner
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices


@dataclass(frozen=True, kw_only=True)
class NSE(MultiLayerEditor):
    """NSE; `moment_weight` is λ, `neurons` p, `memory` the weight of past keys.

    `alpha` and `upper` bound the distances to the target at which a pass writes a fact.
    """

    moment_weight: float = 15_000.0
    floor: float = 0.0
    memory: float = 1.0
    neurons: float = 1.0
    alpha: float = 2.5
    upper: float = 50.0
    relative: bool = False
    max_iterations: int = 3

    @property
    def past_weight(self) -> float:
        return self.memory

    def inverse_covariances(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: inverse(C_II, self.moment_weight, self.floor) for name, C_II in moments.items()}

    def normal_equations(self, model: LanguageModel) -> NormalEquations | None:
        """Return None: each pass writes other edits, into other neurons, and the state has the sum of all changes."""
        return None

    def remember(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        preconditioners: Mapping[str, KeyPreconditioner],
        delta: WeightDelta,
    ) -> tuple[WeightDelta, EditorState]:
        delta, after = super().remember(model, batch, state, preconditioners, delta)
        return delta, with_accumulated(after, accumulate(state, delta))

    def write(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        preconditioners: Mapping[str, KeyPreconditioner],
        penalties: Sequence[OrthogonalityPenalty] = (),
    ) -> WeightDelta:
        spec, contexts = find_matrices(model.module, self.modules), self.contexts(state)
        site = block_of(spec.names[-1])
        with applied(model.module, accumulated_delta(state).scaled(-1.0)):
            wanted_nD = find_targets(model, batch, site, contexts, self.search, penalties).wanted_nD

        def gram_of(name: str, keys_nI: Tensor) -> KeyGram:
            if self.neurons >= 1.0:
                return KeyGram.of(keys_nI, preconditioners[name])
            return self._gram_of_neurons(name, keys_nI, batch, state)

        none = torch.zeros(0, device=model.device)
        delta = WeightDelta({m.name: LowRank(none.view(m.num_out, 0), none.view(m.num_in, 0)) for m in spec.matrices})
        for iteration in range(self.max_iterations - 1):
            with applied(model.module, delta):
                chosen = self._unfinished(model, batch, contexts, site, wanted_nD, first=iteration == 0)
                if not chosen:
                    break
                part = EditBatch(tuple(batch.edits[index] for index in chosen))
                delta = chained([delta, write_layers(model, part, contexts, spec.names, wanted_nD[chosen], gram_of)])
        return delta

    def _unfinished(
        self, model: LanguageModel, batch: EditBatch, contexts: Contexts, site: str, wanted_nD: Tensor, first: bool
    ) -> list[int]:
        """Return the edits whose target is more than `alpha` away.

        Raises `EditRejected` if, in the first pass, a target is `upper` or further away.
        """
        bare = tokenise_at_subject(model, batch, contexts.bare())
        now_nD = output_at(model, bare, site)[bare.first_n]
        away_n = (wanted_nD - now_nD).norm(dim=1)
        if self.relative:
            away_n = away_n / now_nD.norm(dim=1)
        too_far = (away_n >= self.upper).nonzero()[:, 0].tolist()
        if first and too_far:
            name = batch.edits[too_far[0]].id or too_far[0]
            raise EditRejected(
                f"its target is {float(away_n[too_far[0]]):.3g} away, but must be nearer than upper = {self.upper:g}",
                edit=name,
                code=Code.TARGET_TOO_FAR,
            )
        return [index for index in (away_n > self.alpha).nonzero()[:, 0].tolist() if index not in too_far]

    def _gram_of_neurons(self, name: str, keys_nI: Tensor, batch: EditBatch, state: EditorState) -> KeyGram:
        assert self.moments is not None
        index_J = chosen_neurons(keys_nI, self.neurons)
        P_JJ = inverse(self.moments.by_input[name][index_J][:, index_J], self.moment_weight, self.floor)
        preconditioner = KeyPreconditioner.start(P_JJ)
        if name in state.tensors:
            past_mJ = past_keys(batch, state, name).to(index_J.device)[:, index_J].to(P_JJ)
            preconditioner = preconditioner.remember(past_mJ, self.memory)
        gram = KeyGram.of(keys_nI[:, index_J], preconditioner)
        V_nI = torch.zeros_like(keys_nI, dtype=gram.V_nI.dtype).index_copy(1, index_J, gram.V_nI)
        return KeyGram(keys_nI, V_nI, gram.gram_nn)


def chosen_neurons(keys_nI: Tensor, share: float) -> Tensor:
    """Return the inputs with the largest Σ_j |k_j|, in descending order, up to `share` of the whole sum; at least one."""
    score_I, order_I = keys_nI.abs().sum(0).double().sort(descending=True, stable=True)
    count = int((score_I.cumsum(0) <= share * score_I.sum()).sum())
    return order_I[: max(1, count)]
