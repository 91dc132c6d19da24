"""NAS: MEMIT or AlphaEdit whose target values are rescaled to one norm, that of the unedited model's values.

Paper: Norm Anchors Make Model Edits Last, norm-anchor scaling (arXiv 2602.02543). In a stream, edited weights make larger
values, and larger values make larger changes. NAS takes the norm from the solved value: with H the output of the last block in
the bare prompt, v = W k what its matrix W adds there, and δ the change of the output that the search found,

    v* = m (v + δ) / |v + δ|,   Z = H - v + v*,

and Z is written as the wrapped editor writes it (multi_layer.py).
Deviations: m is the root mean square of |W k| over the text of the key moments, m² = tr(W C Wᵀ) of the unedited model, where
the authors average |v*| over facts; a value of more than twice that norm is rescaled, too, and their code leaves the edit out.
Remembers: the wrapped editor's state, and m.
n edits, I in-features, O out-features, D features of a block's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.delta.side_branch import weight_now
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.contexts import tokenise_at_subject
from errata.editors.closed_form.locate_then_edit import block_of, inputs_at
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.multi_layer import write_repeatedly
from errata.editors.closed_form.targets import find_targets
from errata.editors.editor import Editor, check_batch
from errata.editors.solve import KeyGram
from errata.editors.state import EditorState
from errata.editors.wrappers.wrapper import EditorWrapper, inner_state, wrap_state
from errata.model.language_model import LanguageModel
from errata.model.matrices import MatrixSpec, ModelSpec, find_matrices
from errata.model.prefix_cache import BatchCache

_NORM = "value_norm"


@dataclass(frozen=True)
class NAS(EditorWrapper):
    """NAS over MEMIT or AlphaEdit."""

    host: MEMIT | AlphaEdit

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.host, MEMIT | AlphaEdit):
            raise ValueError(f"NAS rescales the targets of MEMIT or AlphaEdit, not of {type(self.host).__name__}")

    @classmethod
    def default_inner(cls) -> type[Editor]:
        return AlphaEdit

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        state = self.host.start(model, spec)  # Checks that there are moments.
        assert self.host.moments is not None
        last = spec.matrices[-1]
        norm = value_norm(weight_now(model.module, last), self.host.moments.by_input[last.name])
        return wrap_state(state, {_NORM: torch.tensor([norm], dtype=torch.float64)})

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]:
        host, inner = self.host, inner_state(state)
        check_batch(batch, host.max_batch)
        preconditioners, contexts = host.preconditioners(model, batch, inner), host.contexts(inner)
        spec = find_matrices(model.module, self.modules)
        targets = find_targets(model, batch, block_of(spec.names[-1]), contexts, host.search)
        value_nO = self._values(model, batch, inner, spec.matrices[-1])
        anchored_nO = anchored(value_nO + targets.change_nD.to(value_nO), float(state.tensors[_NORM]))
        wanted_nD = targets.before_nD + (anchored_nO - value_nO).to(targets.before_nD)

        def gram_of(name: str, keys_nI: Tensor) -> KeyGram:
            return KeyGram.of(keys_nI, preconditioners[name])

        delta = write_repeatedly(model, batch, contexts, spec.names, wanted_nD, gram_of, host.passes)
        delta, after = host.remember(model, batch, inner, preconditioners, transform(delta.on_devices_of(model.module)))
        return delta, wrap_state(after, {_NORM: state.tensors[_NORM]})

    def _values(self, model: LanguageModel, batch: EditBatch, inner: EditorState, matrix: MatrixSpec) -> Tensor:
        """Return what a matrix adds to the output at the edit positions of the bare prompts, [n, O] in fp64."""
        bare = tokenise_at_subject(model, batch, self.host.contexts(inner).bare())
        keys_BI = inputs_at(model, bare, [matrix.name])[matrix.name].double()
        return (keys_BI @ weight_now(model.module, matrix).to(keys_BI).T)[bare.first_n]


def value_norm(weight_OI: Tensor, moment_II: Tensor) -> float:
    """Return the root mean square of |W k| over the keys of a second moment C, from tr(W C Wᵀ)."""
    weight_OI = weight_OI.double()
    return float(((weight_OI @ moment_II.to(weight_OI)) * weight_OI).sum().sqrt())


def anchored(value_nO: Tensor, norm: float) -> Tensor:
    """Return the values with one norm."""
    return norm * torch.nn.functional.normalize(value_nO, dim=1, eps=1e-30)
