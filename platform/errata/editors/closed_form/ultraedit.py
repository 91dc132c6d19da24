"""UltraEdit: gradients at the answer tokens, normalised over all edits so far, and one ridge solve, without training.

Paper: UltraEdit (arXiv 2505.14679); the solve is MALMEN's with an identity for the network.
Equations: [k̂ | ĝ] = ([k | g] - μ) / (σ + 1e-7),  D = -η |k̂|² ĝ,  S = (Kᵀ K + λ I)⁻¹ Kᵀ D with the keys K as they are.
Deviations: the dual n-by-n solve in fp64; gradients of the sum over answer tokens, whose scale the normaliser removes; the end
of the answer is an answer token.
Remembers: count, mean and squares of the rows of every edit so far, one set for all matrices of a shape; not the keys.
n answer tokens, I in-features, O out-features, F = I + O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.editor import Editor, check_batch, check_finite, check_modules
from errata.editors.normalise import Normaliser
from errata.editors.solve import KeyGram, inverses
from errata.editors.state import EditorState
from errata.model.capture import Captured, capture
from errata.model.encoding import encode_rows
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices, input_sources
from errata.model.prefix_cache import BatchCache
from errata.timing import timed


@dataclass(frozen=True)
class UltraEdit(Editor):
    """UltraEdit; `step` is η, `ridge` λ. As |k̂|² is about I, the step is effectively in units of I."""

    modules: tuple[str, ...] = ("mlp.down_proj",)
    _: KW_ONLY
    step: float = 1e-6
    ridge: float = 1.0
    max_batch: int = 1000

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        return EditorState()

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        check_batch(batch, self.max_batch)
        spec = find_matrices(model.module, self.modules)
        encoded = encode_rows(model.renderer, batch.rows, model.device)
        captured, nll_T = capture(model.module, encoded, spec.names)
        check_finite(batch, encoded, captured, nll_T)
        with timed("solve"), torch.no_grad():
            normalisers = self._normalisers(spec, captured, state)
            delta = self._solve(spec, captured, normalisers)
        if not delta.is_finite:
            raise EditRejected("the update is not finite: lower step or raise ridge", code=Code.NOT_FINITE)
        tensors = {f"{shape}|{key}": t for shape, norm in normalisers.items() for key, t in norm.state_dict().items()}
        return delta.on_devices_of(model.module), EditorState(state.num_edits + len(batch), tensors)

    def _normalisers(self, spec: ModelSpec, captured: Mapping[str, Captured], state: EditorState) -> dict[str, Normaliser]:
        """Return the state's normalisers by shape, updated with this batch's rows."""
        normalisers: dict[str, Normaliser] = {}
        for matrix in spec.matrices:
            shape = _shape(matrix.shape)
            if shape not in normalisers:
                normaliser = Normaliser(sum(matrix.shape), centred=True).to(captured[matrix.name].keys_TI.device)
                if state.tensors:
                    normaliser.load_state_dict({key: state.tensors[f"{shape}|{key}"] for key in normaliser.state_dict()})
                normalisers[shape] = normaliser
            rows = captured[matrix.name]
            normalisers[shape].update(torch.cat([rows.keys_TI, rows.grads_TO], 1))
        return normalisers

    def _solve(self, spec: ModelSpec, captured: Mapping[str, Captured], normalisers: Mapping[str, Normaliser]) -> WeightDelta:
        sources, parts = input_sources(spec.names), dict[str, LowRank]()
        shared = {source: KeyGram.of(captured[source].keys_TI) for source in dict.fromkeys(sources.values())}
        log_ridge = shared[spec.names[0]].keys_nI.new_tensor(math.log(self.ridge))
        # One call for all, because each solve below only looks up its inverse.
        inverses(list(shared.values()), log_ridge.expand(len(shared)))
        for matrix in spec.matrices:
            rows, source = captured[matrix.name], sources[matrix.name]
            x_nF: Tensor = normalisers[_shape(matrix.shape)](torch.cat([rows.keys_TI, rows.grads_TO], 1))
            k_nI, g_nO = x_nF[:, : matrix.num_in], x_nF[:, matrix.num_in :]
            Z_nO = shared[source].solve(-self.step * k_nI.square().sum(1, keepdim=True) * g_nO, log_ridge)
            parts[matrix.name] = LowRank(Z_nO.T, shared[source].V_nI.T)
        return WeightDelta(parts)


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
