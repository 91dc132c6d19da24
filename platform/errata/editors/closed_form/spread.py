"""What MEMIT's family shares: one target for each edit, at the last of several blocks, written in shares into all of them.

Papers: MEMIT (2210.07229), AlphaEdit (2410.02355). For the matrices W_1 ... W_p in order, on the model as changed so far,
with k̄ the mean key of an edit over its contexts, Z the targets at the last of their blocks and H what stands there now in the
bare prompts:

    R = (Z - H) / (p - a),   ΔW_a = Rᵀ (K P Kᵀ + I)⁻¹ K P,   P = (A + Σ past k kᵀ)⁻¹

P is where they differ: A = λ C for MEMIT, and λ on the null space of C (nothing else is reached) for AlphaEdit. It is the
published primal solve in its dual form, n by n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from errata.clock import stage
from errata.delta import LowRank, WeightDelta, applied
from errata.edit import EditBatch
from errata.editors.closed_form.located import Located, block_of, inputs_at, output_at
from errata.editors.closed_form.subjects import Contexts, ask
from errata.editors.closed_form.targets import Avoided, Search, find_targets
from errata.editors.editor import EditorState
from errata.editors.solve import Metric, Rows
from errata.model import LanguageModel, find_matrices


@dataclass(frozen=True)
class Spread(Located):
    """The fields of the published settings that these editors have in common: layers and the search for targets."""

    @classmethod
    def llama3_8b(cls, **fields: Any) -> Self:
        modules = tuple(f"layers.{layer}.mlp.down_proj" for layer in range(4, 9))
        return cls(**{"modules": modules, "search": Search(), **fields})

    @classmethod
    def gpt_j(cls, **fields: Any) -> Self:
        modules = tuple(f"h.{layer}.mlp.fc_out" for layer in range(3, 9))
        return cls(**{"modules": modules, "search": Search(learning_rate=0.5), **fields})

    @classmethod
    def gpt2_xl(cls, **fields: Any) -> Self:
        modules = tuple(f"h.{layer}.mlp.c_proj" for layer in range(13, 18))
        return cls(**{"modules": modules, "search": Search(num_steps=20, learning_rate=0.5), **fields})

    @classmethod
    def testbed(cls, **fields: Any) -> Self:
        return cls(**{**TESTBED, **fields})

    def write(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        metrics: Mapping[str, Metric],
        avoided: Sequence[Avoided] = (),
    ) -> WeightDelta:
        names, contexts = find_matrices(model.module, self.modules).names, self.contexts(state)
        wanted_nD = find_targets(model, batch, block_of(names[-1]), contexts, self.search, avoided).wanted_nD
        return spread(model, batch, contexts, names, wanted_nD, lambda name, keys_nI: Rows.of(keys_nI, metrics[name]))


# A model of four blocks looks its facts up where it answers, and its answers are one word: what is written at the subject
# hardly carries over to another phrasing, and all edits of a person would be at one key. Its prompts are whole sentences: a
# context before them is none that it has seen.
TESTBED: dict[str, Any] = {
    "modules": ("layers.3.mlp.down_proj",),
    "position": "prompt",
    "search": Search(num_steps=25, learning_rate=0.3, decay=0.0, clamp=4.0, kl_weight=0.0, loss_floor=0.02),
    "context_words": (),
}


def spread(
    model: LanguageModel,
    batch: EditBatch,
    contexts: Contexts,
    names: Sequence[str],
    wanted_nD: Tensor,
    rows_of: Callable[[str, Tensor], Rows],
) -> WeightDelta:
    """One pass over the matrices `names`, first to last; `rows_of(name, keys_nI)` has the metric of each."""
    asked, bare = ask(model, batch, contexts), ask(model, batch, contexts.bare())
    site, ridge = block_of(names[-1]), torch.zeros((), device=model.device)  # its logarithm: the ridge is in the metric
    delta = WeightDelta({})
    for index, name in enumerate(names):
        with applied(model.module, delta), stage("capture"):
            keys_nI = asked.mean(inputs_at(model, asked, [name])[name])
            now_nD = output_at(model, bare, site)
        with stage("solve"), torch.no_grad():
            rows = rows_of(name, keys_nI)
            Z_nO = rows.solve((wanted_nD - now_nD) / (len(names) - index), ridge)
        delta = WeightDelta({**delta.parts, name: LowRank(Z_nO.T, rows.V_nI.T)})
    return delta
