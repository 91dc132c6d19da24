"""FT-L: fine-tuning of one matrix within a small box around its values, the constrained baseline of the field.

Paper: introduced as a baseline by ROME (arXiv 2202.05262), after Zhu et al. (arXiv 2012.00363).
Equation: minimise the mean -log p of the answer tokens by Adam; after each step clip every entry to ± epsilon of its start.
Deviations: teacher forcing over all answer tokens (public code reads them all at the last prompt token) and, with `eos`, over
the end of the answer too, without which a model does not stop when it generates. The learning rate is not below epsilon, so
the first step takes nearly every entry to ± epsilon, where it stays: the change has full rank and is a dense part.
Remembers: only the number of edits; each call has its own box, so T calls may drift by T epsilon.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch
from errata.editors.editor import Editor, check_modules
from errata.editors.fine_tuning.descent import Descent, descend
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache


@dataclass(frozen=True)
class FTL(Editor):
    """FT-L. The defaults are the published constants for GPT2-XL: 25 epochs, learning rate 5e-4, epsilon 5e-4."""

    modules: tuple[str, ...] = ("layers.0.mlp.down_proj",)
    _: KW_ONLY
    num_epochs: int = 25
    learning_rate: float = 5e-4
    epsilon: float = 5e-4
    loss_floor: float = 1e-2
    eos: bool = True
    max_batch: int = 1000
    seed: int = 0

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        return EditorState()

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        descent = Descent(
            num_epochs=self.num_epochs,
            learning_rate=self.learning_rate,
            batch_size=max(1, len(batch)),
            loss_floor=self.loss_floor,
            eos=self.eos,
            seed=self.seed,
            box=self.epsilon,
        )
        delta = descend(model, batch, self.modules, self.max_batch, descent)
        return delta, EditorState(state.num_edits + len(batch))
