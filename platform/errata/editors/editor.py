"""The interface of every editor: hyper-parameters in a frozen dataclass, and two functions without side effects.

1. The model's parameters are bit-identical before and after `edit`.
2. Everything remembered between calls is in `EditorState`, which is saved with each version and rolled back with it.
3. The same inputs and seed give the same delta. An edit that cannot be made raises `EditRejected` with its reason.
4. Trained weights (a hypernetwork) belong to the editor and come from an artifact; `edit` does not change them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor

from errata.delta.kinds import Delta, weights_alone
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.edit_memory.bank import Kind
from errata.editors.normal_equations import NormalEquations
from errata.editors.presets import preset_of
from errata.editors.state import EditorState
from errata.model.capture import Captured
from errata.model.encoding import Encoded
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.model.prefix_cache import BatchCache
from errata.overrides import with_fields


class Editor(ABC):
    """Base class of the editors; the module's docstring is the contract. `modules` are name patterns of the edited matrices.

    An editor that `writes` into a memory changes no matrix. `kind` is that of the memory: it says whether the memory reads the
    input of the modules, or the prompt before the model, and whether its answers are known without the model. An editor that
    `is_trained` has a policy: a network with an artifact of its own (jobs/train.py).
    """

    modules: tuple[str, ...]
    writes: ClassVar[Literal["weights", "memory"]] = "weights"
    kind: ClassVar[Kind | None] = None
    is_trained: ClassVar[bool] = False

    @classmethod
    def from_artifact(cls, artifact: str | Path | None = None, preset: str | None = None, device: Any = "cpu") -> Self:
        """Build an editor from an artifact folder, if it needs one, and from one of its presets, if any is named.

        Raises `ValueError` for an artifact or a preset that is missing, unknown or not wanted.
        """
        if artifact is not None:
            raise ValueError(f"{cls.__name__} needs no artifact: leave out {artifact}")
        return cls() if preset is None else cls.preset(preset)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Self:
        """Build an editor from a row of presets.py; `fields` replace some. Raises `ValueError` with the names of the rows."""
        row = preset_of(cls, name)
        editor: Any = with_fields(cls(), {"modules": row.modules, **row.fields})
        return cast(Self, replace(editor, **fields))

    @abstractmethod
    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        """Return the state before the first edit. Raises `ValueError` if the editor does not fit the model."""

    def with_moments(self, moments: Any) -> Self:
        """Return the editor with the `Moments` of a model's keys, if it uses them; else the editor itself."""
        return self

    @abstractmethod
    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[Delta, EditorState]:
        """Return the change, of weights or of a memory, that makes `model` in its present version follow `batch`.

        The state after it is returned, too. `cache` holds the tokens of the batch and a prefix cache of the activations before
        the edited matrices, if the caller has one. Raises `EditRejected`.
        """

    def normal_equations(self, model: LanguageModel) -> NormalEquations | None:
        """Return the equations that the editor's changes of `model` solve, if edits can be taken out of them; else None."""
        return None

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]:
        """Edit with the change passed through `transform`, for wrappers of this editor.

        An editor whose state depends on the change, or on the model after it, overrides this to use the transformed change.
        """
        delta, after = self.edit(model, batch, state, cache)
        return transform(weights_alone(delta, "a wrapper")), after


def check_batch(batch: EditBatch, max_batch: int) -> None:
    """Raise `EditRejected` if the batch is empty or too large."""
    if not 1 <= len(batch) <= max_batch:
        raise EditRejected(f"a batch holds 1 to {max_batch} edits, not {len(batch)}", field="edits", code=Code.BATCH_SIZE)


def check_modules(modules: Sequence[str], model: LanguageModel, spec: ModelSpec) -> None:
    """Raise `ValueError` if the editor's name patterns find other matrices in the model than `spec` has."""
    own = find_matrices(model.module, modules)
    if own != spec:
        raise ValueError(f"the editor was made for {', '.join(own.names)}, but the model has {', '.join(spec.names)}")


def check_finite(batch: EditBatch, encoded: Encoded, captured: Mapping[str, Captured], nll_T: Tensor) -> None:
    """Raise `EditRejected` for the first edit at whose answer the model's keys, gradients or loss are not finite."""
    tensors = (nll_T, *(tensor for rows in captured.values() for tensor in (rows.keys_TI, rows.grads_TO)))
    # A sum is finite only if all terms are. One test for all sums, because on a GPU each read waits for the queued work.
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
        answer = int((~finite_T).nonzero()[0])
        row = next(i for i, before in enumerate(accumulate(encoded.answer_lengths)) if answer < before)
        index = batch.rows[row].edit
        raise EditRejected(
            "the model's keys, gradients or loss are not finite here", edit=batch.edits[index].id or index, code=Code.NOT_FINITE
        )
    if not whole:
        raise EditRejected("the model's keys or gradients are not finite before an answer", field="edits", code=Code.NOT_FINITE)
