"""Base of MEMIT's family: one target vector for each edit, at the last of several blocks, written in shares into all of them.

Papers: MEMIT (2210.07229), AlphaEdit (2410.02355). For the matrices W_1 ... W_p in order, on the model with the changes so
far, with k̄ the mean key of an edit over its contexts, Z the targets at the last block and H the outputs there in the bare
prompts:

    R = (Z - H) / (p - a),   ΔW_a = Rᵀ (K P Kᵀ + I)⁻¹ K P,   P = (A + Σ past k kᵀ)⁻¹

The methods differ in P: A = λ C for MEMIT, and λ on the null space of C, with P zero elsewhere, for AlphaEdit. This is the
published primal solve in its dual form, n by n. n edits, I in-features, O out-features, D features of a block's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta, chained
from errata.edit import EditBatch
from errata.editors.closed_form.contexts import Contexts, tokenise_at_subject
from errata.editors.closed_form.locate_then_edit import LocateThenEdit, block_of, inputs_at, output_at
from errata.editors.closed_form.targets import OrthogonalityPenalty, find_targets
from errata.editors.normal_equations import NormalEquations
from errata.editors.solve import KeyGram, KeyPreconditioner
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.timing import timed


@dataclass(frozen=True)
class MultiLayerEditor(LocateThenEdit):
    """Base class of the editors that write one target into several layers."""

    @property
    def passes(self) -> int:
        """The number of times that the targets are written, each time for what is still missing."""
        return 1

    def normal_equations(self, model: LanguageModel) -> NormalEquations | None:
        """Return the equations of each matrix, given the share of the targets that was written into it.

        The keys in the state were measured after an edit, which only at the first matrix are those that it was solved at.
        """
        spec = find_matrices(model.module, self.modules)
        ridge = torch.zeros((), device=model.device)  # Log of 1, as in `write_layers`.
        return NormalEquations(
            {name: ridge for name in spec.names},
            {name: name for name in spec.names},
            self.past_weight,
            lambda: self.base_preconditioners(spec),
            lambda batch: batch.edits,
            frozenset(spec.names[1:] if self.past_weight else spec.names),
        )

    def write(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        preconditioners: Mapping[str, KeyPreconditioner],
        penalties: Sequence[OrthogonalityPenalty] = (),
    ) -> WeightDelta:
        names, contexts = find_matrices(model.module, self.modules).names, self.contexts(state)
        wanted_nD = find_targets(model, batch, block_of(names[-1]), contexts, self.search, penalties).wanted_nD

        def gram_of(name: str, keys_nI: Tensor) -> KeyGram:
            return KeyGram.of(keys_nI, preconditioners[name])

        return write_repeatedly(model, batch, contexts, names, wanted_nD, gram_of, self.passes)


def write_repeatedly(
    model: LanguageModel,
    batch: EditBatch,
    contexts: Contexts,
    names: Sequence[str],
    wanted_nD: Tensor,
    gram_of: Callable[[str, Tensor], KeyGram],
    passes: int,
) -> WeightDelta:
    """Write what is missing at the last of the matrices `names`, and again on the result; arguments as for `write_layers`."""
    delta = write_layers(model, batch, contexts, names, wanted_nD, gram_of)
    for _ in range(passes - 1):
        with applied(model.module, delta):
            delta = chained([delta, write_layers(model, batch, contexts, names, wanted_nD, gram_of)])
    return delta


def write_layers(
    model: LanguageModel,
    batch: EditBatch,
    contexts: Contexts,
    names: Sequence[str],
    wanted_nD: Tensor,
    gram_of: Callable[[str, Tensor], KeyGram],
) -> WeightDelta:
    """Write one share of the missing output into each of the matrices `names`, first to last.

    `gram_of(name, keys_nI)` gives the Gram matrix of the keys in the preconditioner of a matrix.
    """
    in_context, bare = tokenise_at_subject(model, batch, contexts), tokenise_at_subject(model, batch, contexts.bare())
    site, ridge = block_of(names[-1]), torch.zeros((), device=model.device)  # Log of 1: the ridge is in P.
    delta = WeightDelta({})
    for index, name in enumerate(names):
        with applied(model.module, delta), timed("capture"):
            keys_nI = in_context.mean(inputs_at(model, in_context, [name])[name])
            now_nD = output_at(model, bare, site)[bare.first_n]
        with timed("solve"), torch.no_grad():
            gram = gram_of(name, keys_nI)
            Z_nO = gram.solve((wanted_nD - now_nD) / (len(names) - index), ridge)
        delta = WeightDelta({**delta.parts, name: LowRank(Z_nO.T, gram.V_nI.T)})
    return delta
