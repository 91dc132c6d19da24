"""Editors whose deltas are known, for the tests of the benchmark."""

from dataclasses import dataclass, field

import torch

from errata.benchmark.results import CheckpointScores
from errata.benchmark.run import BenchmarkedEditor
from errata.delta.parts import Dense
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors import Editor, EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.timing import timed

MODULE = "model.layers.1.mlp.down_proj"


@dataclass(frozen=True)
class Known(Editor):
    """Adds `change` to every weight, and refuses batches whose size is in `refuses`."""

    modules: tuple[str, ...] = ("layers.1.mlp.down_proj",)
    change: float = 0.01
    refuses: tuple[int, ...] = ()
    seen: list[EditBatch] = field(default_factory=list, compare=False, repr=False)

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        return EditorState()

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        self.seen.append(batch)
        if len(batch) in self.refuses:
            raise EditRejected("refused by the test", code=Code.EDITOR_FAILED)
        with timed("capture"):
            weight_OI = model.module.get_submodule(MODULE).weight
        with timed("solve"):
            delta = WeightDelta({MODULE: Dense(torch.full_like(weight_OI, self.change))})
        return delta, EditorState(state.num_edits + len(batch))


@dataclass(frozen=True)
class Late(Known):
    """Changes nothing before the sixth edit."""

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        delta, after = super().edit(model, batch, state, cache)
        return delta.scaled(float(state.num_edits >= 5)), after


@dataclass(frozen=True)
class Vandal(Known):
    """Breaks the contract of an editor: writes into the model."""

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        model.module.get_submodule("model.layers.0.mlp.down_proj").weight.data[0, 0] += 1
        return super().edit(model, batch, state, cache)


def known(name: str = "Known", **fields: object) -> BenchmarkedEditor:
    return BenchmarkedEditor(name, Known(**fields))  # type: ignore[arg-type]


def number(row: CheckpointScores, name: str) -> float:
    """Return a measure that must not be None."""
    value = row[name]
    assert value is not None, name
    return value
