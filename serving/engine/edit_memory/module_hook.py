"""The hook inside a vLLM worker that mixes the experts of a bank into the model's matrices, at the tokens that records decide.

A token is decided by itself, from the input of one module there, so that neither other requests nor the parts in which a
prompt is read matter. What is mixed in reaches the keys and values of later layers: a worker changes such a bank as it changes
weights. Engines must be eager: a compiled graph does not call hooks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from errata.edit_memory.bank import Bank
from errata.edit_memory.experts import ExpertsHooks, ExpertsPlace
from errata.edit_memory.lookup import Fired
from errata.model.matrices import ModelSpec
from serving.engine.edit_memory.fired_notes import FiredNotes
from serving.engine.edit_memory.logits_hook import last_tokens


def experts_hook(model: nn.Module, places: Mapping[str, ExpertsPlace], bank: Bank, notes: FiredNotes | None) -> ExpertsHooks:
    """Make the model read a bank of experts from the next step on; the rows at the last token of each request are noted."""

    def note(found: Fired) -> None:
        last_R = last_tokens()
        if notes is not None and last_R is not None:
            notes.add(bank, Fired(found.row_T[last_R], found.score_T[last_R]))

    return ExpertsHooks(model, bank, places, note)


def places_of(spec: ModelSpec, targets: Mapping[str, nn.Module]) -> dict[str, ExpertsPlace]:
    """Return the place of each matrix that vLLM has; a fused module has the outputs of its matrices behind each other."""
    found, width = dict[str, ExpertsPlace](), dict[int, int]()
    for matrix in spec.matrices:
        module = targets.get(matrix.name)
        if module is not None:
            begin = width.get(id(module), 0)
            found[matrix.name], width[id(module)] = ExpertsPlace(module, begin), begin + matrix.num_out
    return found
