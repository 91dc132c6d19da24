"""BLUE: MEMIT or AlphaEdit in the first and the last critical block alone, each of which is written by a target of its own.

Paper: BLUE, boundary layer update (NeurIPS 2025). MEMIT and AlphaEdit search for one target, at the last critical block, and
divide what is missing there over all critical blocks. BLUE leaves the division out: for W_b in (first, last), on the model with
the change so far, with Z_b a target found at the output of the block of W_b and H_b the output there,

    R_b = Z_b - H_b,   ΔW_b = R_bᵀ (K P Kᵀ + I)⁻¹ K P,   P as in the wrapped editor (multi_layer.py).

Deviations: derived from that rule, without the authors' code. The last block's target is searched for on the model that the
first block's change leaves, so it only adds what is still missing. With one matrix this is the wrapped editor, to the bit.
Remembers: the wrapped editor's state. D features of a block's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.locate_then_edit import block_of
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.multi_layer import write_repeatedly
from errata.editors.closed_form.targets import find_targets
from errata.editors.editor import Editor, check_batch
from errata.editors.normal_equations import NormalEquations
from errata.editors.solve import KeyGram, KeyPreconditioner
from errata.editors.state import EditorState
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.model.prefix_cache import BatchCache


@dataclass(frozen=True)
class BLUE(EditorWrapper):
    """BLUE; of more than two modules of the wrapped editor, as its presets name them, the first and the last block stay."""

    host: MEMIT | AlphaEdit

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.host, MEMIT | AlphaEdit):
            raise ValueError(
                f"BLUE wraps an editor that divides one target over several blocks, MEMIT or AlphaEdit, not "
                f"{type(self.host).__name__}"
            )
        if len(self.host.modules) > 2:
            object.__setattr__(self, "host", replace(self.host, modules=boundary(self.host.modules)))

    @classmethod
    def default_inner(cls) -> type[Editor]:
        return AlphaEdit

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        if len(spec.matrices) > 2:
            raise ValueError(
                f"BLUE writes into the first and the last critical matrix, but its modules are {', '.join(spec.names)}: name "
                "these two (modules)"
            )
        return super().start(model, spec)

    def normal_equations(self, model: LanguageModel) -> NormalEquations | None:
        return self.host.normal_equations(model)

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
    ) -> tuple[WeightDelta, EditorState]:
        check_batch(batch, self.host.max_batch)
        preconditioners = self.host.preconditioners(model, batch, state)
        delta = transform(self._write(model, batch, state, preconditioners).on_devices_of(model.module))
        return self.host.remember(model, batch, state, preconditioners, delta)

    def _write(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, preconditioners: Mapping[str, KeyPreconditioner]
    ) -> WeightDelta:
        contexts, delta = self.host.contexts(state), WeightDelta({})

        def gram_of(name: str, keys_nI: Tensor) -> KeyGram:
            return KeyGram.of(keys_nI, preconditioners[name])

        for name in find_matrices(model.module, self.modules).names:
            with applied(model.module, delta):
                wanted_nD = find_targets(model, batch, block_of(name), contexts, self.host.search).wanted_nD
                written = write_repeatedly(model, batch, contexts, [name], wanted_nD, gram_of, self.host.passes)
            delta = WeightDelta({**delta.parts, **written.parts})
        return delta


def boundary(modules: Sequence[str]) -> tuple[str, str]:
    """Return the modules of the first and of the last block, by the blocks' numbers."""
    in_order = sorted(modules, key=lambda name: int(block_of(name).rpartition(".")[2]))
    return in_order[0], in_order[-1]
