"""LoRA: a low-rank adapter of one or a few matrices, trained on each batch and merged into the version.

Paper: LoRA (arXiv 2106.09685), by the library peft. Equation: W x + (α / r) B A x, with A [r, I] drawn by Kaiming's rule and B
[O, r] zero at first; minimise the mean -log p of the answer tokens and of the end of text by Adam over A and B, in mini-batches
over the edits, for several epochs. The change of a batch is the product (α / r) B A, and the next batch begins a new adapter.
Deviations: no dropout and no weight decay, which serve long trainings; adapters are in fp32, whatever the model's dtype is.
Remembers: only the number of edits. The change is a low-rank part of rank r. R rank, I in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass
from importlib.util import find_spec
from typing import Any

import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.editor import Editor, check_batch, check_modules
from errata.editors.fine_tuning.descent import Descent, minimise
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.model.prefix_cache import BatchCache

_ADAPTER = "edit"


@dataclass(frozen=True)
class LoRA(Editor):
    """LoRA; `rank` is r, `alpha` α, `batch_size` that of the mini-batches."""

    modules: tuple[str, ...] = ("mlp.down_proj",)
    _: KW_ONLY
    rank: int = 8
    alpha: float = 16.0
    num_epochs: int = 40
    learning_rate: float = 2e-3
    batch_size: int = 32
    loss_floor: float = 1e-2
    eos: bool = True
    max_batch: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is the number of columns of an adapter, at least 1, not {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"alpha scales an adapter, so it is above 0, not {self.alpha}")

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        if find_spec("peft") is None:
            raise ValueError("LoRA needs the library peft: install it (pip install 'errata[lora]')")
        return EditorState()

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        check_batch(batch, self.max_batch)
        descent = Descent(
            num_epochs=self.num_epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            loss_floor=self.loss_floor,
            eos=self.eos,
            seed=self.seed,
        )
        names = find_matrices(model.module, self.modules).names
        with self._adapters(model.module, names) as layers:
            factors = [factor for layer in layers.values() for factor in _factors(layer)]
            minimise(model, batch, factors, descent, nullcontext)
            delta = WeightDelta({name: _merged(layer) for name, layer in layers.items()})
        if not delta.is_finite:
            raise EditRejected("the update is not finite: lower learning_rate", code=Code.NOT_FINITE)
        return delta, EditorState(state.num_edits + len(batch))

    @contextmanager
    def _adapters(self, module: Any, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Put a new adapter beside each of these matrices, and take it out again; yields peft's layers by module name."""
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        alpha: Any = self.alpha  # peft declares an int, and only divides it by the rank.
        config = LoraConfig(r=self.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(names))
        own = {name: module.get_submodule(name) for name in names}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                LoraModel(module, config, _ADAPTER)  # Puts its layers in the place of the model's.
            module.eval()
            yield {name: module.get_submodule(name) for name in names}
        finally:
            for name, layer in own.items():
                module.set_submodule(name, layer)
            module.__dict__.pop("peft_config", None)


def _factors(layer: Any) -> list[torch.Tensor]:
    return [layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]


def _merged(layer: Any) -> LowRank:
    A_RI, B_OR = (factor.detach().float() for factor in _factors(layer))
    return LowRank(layer.scaling[_ADAPTER] * B_OR, A_RI.T)
