"""LocFT: plain cross-entropy on one or a few matrices, breadth first over the edits of a batch.

Paper: Fine-tuning Done Right in Model Editing (arXiv 2509.22072): fine-tuning failed because of its order of optimisation.
Equation: minimise the mean -log p of the answer tokens and of the end of text by Adam, in mini-batches over all edits, for
several epochs, without any constraint.
Deviations: an epoch is over the batch that arrives, because edits are a stream (the paper's is over the whole set).
Remembers: only the number of edits. The change has full rank and is a dense part.
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
class LocFT(Editor):
    """LocFT; `batch_size` is that of the mini-batches."""

    modules: tuple[str, ...] = ("mlp.down_proj",)
    _: KW_ONLY
    num_epochs: int = 40
    learning_rate: float = 3e-4
    batch_size: int = 32
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
            batch_size=self.batch_size,
            loss_floor=self.loss_floor,
            eos=self.eos,
            seed=self.seed,
        )
        delta = descend(model, batch, self.modules, self.max_batch, descent)
        return delta, EditorState(state.num_edits + len(batch))
