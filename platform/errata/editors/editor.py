"""What every editor is: hyper-parameters in a frozen dataclass, and two functions without side effects.

1. The model's parameters are bit-identical before and after `edit`.
2. Everything remembered between calls is in `EditorState`, which is saved with each version and goes back with it.
3. The same inputs and seed give the same delta. What cannot be made raises `EditRejected`, naming the edit and the reason.
4. Trained weights (a hypernetwork) belong to the editor, loaded from an artifact; `edit` does not change them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.presets import preset_of
from errata.editors.state import EditorState
from errata.model.capture import Captured
from errata.model.encoding import Encoded
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.model.prefix_cache import BatchCache
from errata.overrides import with_fields


class Editor(ABC):
    """Two functions, and `modules`, the name patterns of the matrices that it edits; the contract stands above."""

    modules: tuple[str, ...]

    @classmethod
    def from_artifact(cls, artifact: str | Path | None = None, preset: str | None = None, device: Any = "cpu") -> Self:
        """One that can start, from the folder that it needs, if any, and one of its presets, if it has some.

        Raises `ValueError` that says what is missing, unknown or too much.
        """
        if artifact is not None:
            raise ValueError(f"{cls.__name__} needs no artifact; it is given {artifact}")
        return cls() if preset is None else cls.preset(preset)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Self:
        """With the settings of a row of presets.py, and `fields` in place of some. Raises `ValueError` naming the rows."""
        row = preset_of(cls, name)
        editor: Any = with_fields(cls(), {"modules": row.modules, **row.fields})
        return cast(Self, replace(editor, **fields))

    @abstractmethod
    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        """The state before the first edit. Raises `ValueError` if the editor was not made for this model."""

    def with_moments(self, moments: Any) -> Self:
        """With the `Moments` of a model's keys, for those that protect what it uses; the others are as they were."""
        return self

    @abstractmethod
    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        """The change that makes `model`, as it is now, follow `batch`, and what is remembered after it.

        `cache`, where the caller has one, holds the tokens of the batch and the activations before the edited matrices.
        """

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]:
        """As `edit`, with the change altered before it is written, for editors that are made of this one.

        An editor that remembers what was written, or the model after it, overrides this: it must remember the altered change.
        """
        delta, after = self.edit(model, batch, state, cache)
        return transform(delta), after


def check_batch(batch: EditBatch, max_batch: int) -> None:
    """Raise `EditRejected` if the batch is empty or too large."""
    if not 1 <= len(batch) <= max_batch:
        raise EditRejected(f"a batch holds 1 to {max_batch} edits, not {len(batch)}", field="edits", code=Code.BATCH_SIZE)


def check_modules(modules: Sequence[str], model: LanguageModel, spec: ModelSpec) -> None:
    """Raise `ValueError` if the editor's name patterns find other matrices in the model than `spec` has."""
    own = find_matrices(model.module, modules)
    if own != spec:
        raise ValueError(f"the editor was made for {', '.join(own.names)}, the model offers {', '.join(spec.names)}")


def check_finite(batch: EditBatch, encoded: Encoded, captured: Mapping[str, Captured], nll_T: Tensor) -> None:
    """Raise `EditRejected` naming the first edit at whose answer the model's numbers are not finite."""
    tensors = (nll_T, *(tensor for rows in captured.values() for tensor in (rows.keys_TI, rows.grads_TO)))
    # A sum is finite only if all in it is; and looked at once, since on a GPU each look waits for all work before it.
    if bool(torch.isfinite(torch.stack([tensor.sum().double() for tensor in tensors])).all()):
        return
    finite_T = torch.isfinite(nll_T)
    whole = True
    for rows in captured.values():
        finite_R = torch.isfinite(rows.keys_TI).all(1) & torch.isfinite(rows.grads_TO).all(1)
        whole &= bool(finite_R.all())
        if len(finite_R) == len(finite_T):
            finite_T = finite_T & finite_R
    if not finite_T.all():
        index = int(encoded.predicts_BS.nonzero()[:, 0][~finite_T][0])
        raise EditRejected(
            "the model's keys, gradients or loss are not finite here", edit=batch.edits[index].id or index, code=Code.NOT_FINITE
        )
    if not whole:
        raise EditRejected("the model's keys or gradients are not finite before an answer", field="edits", code=Code.NOT_FINITE)
