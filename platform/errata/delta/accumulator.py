"""Content of a version: weights, the base plus the fp32 sum of all deltas, cast once, and the bank of its memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from errata.delta.kinds import Delta, memory_of, split_by_kind, weights_of
from errata.delta.memory_delta import held_after
from errata.delta.parts import LowRank, Piece, is_sound, pieces
from errata.delta.weight_delta import WeightDelta
from errata.edit_memory.bank import AT_MATRIX, Bank
from errata.edit_memory.experts import check_matrices
from errata.edit_memory.hooks import bank_of, read_bank
from errata.model.matrices import ModelSpec

CHUNK_ROWS = 64


class Accumulator:
    """Base matrices in their own dtype, and the fp32 sum of all deltas for each.

    A weight is base + sum, cast once. An earlier version is rebuilt from the base, not by subtraction, so a version has the
    same bits however it was reached. With `in_place`, sums are changed in place, with the same bits, and must not be shared.
    For a matrix of 4096 x 14336 and rank 20 this takes 0.03 s of CPU instead of 0.13 (AMD EPYC, one thread).
    """

    def __init__(self, base: Mapping[str, Tensor], in_place: bool = False) -> None:
        self.base_OI = {name: tensor.detach().clone() for name, tensor in base.items()}
        self.sum_OI: dict[str, Tensor] = {}
        self.in_place = in_place

    def check(self, delta: WeightDelta) -> None:
        """Raise `ValueError` with every name and shape in `delta` that does not fit the base matrices."""
        faults = []
        for name, part in delta:
            if name not in self.base_OI:
                faults.append(f"{name} is not an editable matrix")
                continue
            if part.shape != tuple(self.base_OI[name].shape):
                faults.append(f"{name} is {tuple(self.base_OI[name].shape)}, its delta {part.shape}")
            elif not all(piece.shape == part.shape and is_sound(piece) for piece in pieces(part)):
                faults.append(f"the tensors of the delta of {name} do not fit each other")
        if faults:
            raise ValueError("; ".join(faults))

    def add(self, delta: WeightDelta) -> None:
        for name, part in delta:
            device = self.base_OI[name].device
            for piece in pieces(part):
                self.sum_OI[name] = self._added(self.sum_OI.get(name), piece, device)

    @torch.no_grad()
    def _added(self, sum_OI: Tensor | None, piece: Piece, device: torch.device) -> Tensor:
        if sum_OI is not None and isinstance(piece, LowRank) and piece.U_OR.dtype == piece.V_IR.dtype == torch.float32:
            U_OR, V_RI = piece.U_OR.to(device), piece.V_IR.to(device).T
            return sum_OI.addmm_(U_OR, V_RI) if self.in_place else torch.addmm(sum_OI, U_OR, V_RI)
        change = piece.dense().float().to(device)
        if sum_OI is None:
            return change.clone() if self.in_place else change  # It may be the delta's own tensor.
        return sum_OI.add_(change) if self.in_place else sum_OI + change

    def copy(self) -> Accumulator:
        """Return an accumulator at the same sums, which it shares as long as neither changes them in place."""
        assert not self.in_place
        found = Accumulator({})
        found.base_OI, found.sum_OI = self.base_OI, dict(self.sum_OI)
        return found

    def reset(self) -> set[str]:
        """Return to the base, and return the names of the changed weights."""
        changed = set(self.sum_OI)
        self.sum_OI = {}
        return changed

    def weight(self, name: str) -> Tensor:
        base_OI = self.base_OI[name]
        if name not in self.sum_OI:
            return base_OI
        weight_OI = torch.empty_like(base_OI)
        # A few rows at a time stay in the processor's cache, which takes a quarter of the time of whole matrices.
        chunks = (matrix.split(CHUNK_ROWS) for matrix in (weight_OI, base_OI, self.sum_OI[name]))
        for weight, base, change in zip(*chunks, strict=True):
            weight.copy_(base.float() + change)
        return weight_OI


def with_own_storage(module: nn.Module, spec: ModelSpec) -> None:
    """Move the matrices to memory of their own, where those of a copy lie, too.

    In a file of weights they begin at any address, and a product with an unaligned matrix differs in its last bits from the
    same one with its copy: what is made on a copy could then not be made again on the model.
    """
    for name in spec.names:
        weight = module.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight.data = weight.data.clone()


@dataclass(frozen=True)
class VersionContent:
    """Content of a version, beside the base model: the fp32 sum of each changed matrix, and the bank of its memory if any."""

    sums: Mapping[str, Tensor] = field(default_factory=dict)
    bank: Bank | None = None


class EditedModel:
    """A model in memory whose weights, and whose memory of edits, can be set to any version of a chain of deltas."""

    def __init__(self, module: nn.Module, spec: ModelSpec, accumulator: Accumulator | None = None) -> None:
        """Take a model at its base or, with the accumulator of another edited model, at that one's version."""
        self.module, self.spec = module, spec
        base = {} if accumulator else {m.name: m.oriented(self._parameter(m.name)) for m in spec.matrices}
        self.accumulator = accumulator or Accumulator(base)

    def copy(self) -> EditedModel:
        """Return a model at the same version whose matrices and hooks are its own.

        All its other parameters, and the records of its memory, are shared with this one.
        """
        own: dict[str, Any] = {name: self.module.get_submodule(name).weight for name in self.spec.names}
        parts = (*self.module.parameters(), *self.module.buffers(), bank_of(self.module))
        shared: dict[int, Any] = {id(each): each for each in parts if each is not None}
        shared |= {id(weight): nn.Parameter(weight.detach().clone(), requires_grad=False) for weight in own.values()}
        return EditedModel(copy.deepcopy(self.module, shared), self.spec, self.accumulator.copy())

    def _parameter(self, name: str) -> Tensor:
        weight = self.module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight.data

    def _write(self, names: set[str]) -> None:
        for name in names:
            self._parameter(name).copy_(self.spec[name].oriented(self.accumulator.weight(name)))

    def check(self, delta: Delta) -> None:
        """Raise `ValueError` for a delta that does not fit the model."""
        self.accumulator.check(weights_of(delta))
        if (memory := memory_of(delta)) is None:
            return
        memory.check()
        if memory.kind in AT_MATRIX and memory.site not in self.spec.names:
            raise ValueError(f"{memory.site}, whose input the memory reads, is not an editable matrix")
        if memory.shared:
            check_matrices(memory.site, memory.shared, {matrix.name: matrix.shape for matrix in self.spec.matrices})

    def add(self, delta: Delta) -> None:
        """Add a delta to the current version. Raises `ValueError` if it does not fit; nothing changes then."""
        self.check(delta)
        weights, memory = weights_of(delta), memory_of(delta)
        bank = None if memory is None else memory.after(bank_of(self.module))
        self.accumulator.add(weights)
        self._write(set(weights.parts))
        if memory is not None:
            read_bank(self.module, bank)

    def content(self) -> VersionContent:
        """Return the content of the current version, for `set`. It is not copied, because nothing here changes in place."""
        return VersionContent(dict(self.accumulator.sum_OI), bank_of(self.module))

    def set(
        self,
        deltas: Sequence[Delta],
        start: VersionContent | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """Set the model to the base, or to the content of an earlier call, plus the deltas in this order.

        Raises `ValueError` for a delta that does not fit; nothing changes then. `step` is called before each delta is added; if
        it raises, weights and memory are undefined until the next call.
        """
        start = start or VersionContent()
        for delta in deltas:
            self.check(delta)
        bank = held_after(split_by_kind(deltas)[1], start.bank)
        changed = self.accumulator.reset()
        self.accumulator.sum_OI = dict(start.sums)
        changed |= set(self.accumulator.sum_OI)
        for delta in deltas:
            step()
            weights = weights_of(delta)
            self.accumulator.add(weights)
            changed |= set(weights.parts)
        self._write(changed)
        read_bank(self.module, bank)
