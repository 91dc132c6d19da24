"""The kinds of a delta: a change of weights, of a memory beside them, or of both. What works for all is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from errata.delta.joint_delta import JointDelta, is_joint
from errata.delta.memory_delta import ABOUT, MemoryDelta, one_change
from errata.delta.weight_delta import WeightDelta, chained, in_series

Delta = WeightDelta | MemoryDelta | JointDelta


def delta_from_tensors(tensors: Mapping[str, Tensor]) -> Delta:
    """Build a delta from the result of `to_tensors`. Raises `ValueError` for other tensors."""
    if is_joint(tensors):
        return JointDelta.from_tensors(tensors)
    return MemoryDelta.from_tensors(tensors) if ABOUT in tensors else WeightDelta.from_tensors(tensors)


def load_delta(path: str | Path, device: Any = "cpu") -> Delta:
    """Read a file that `save` wrote. Raises `SafetensorError` or `ValueError` for any other file."""
    return delta_from_tensors(load_file(str(path), device=str(device)))


def stored(delta: Delta) -> Delta:
    """Return the delta as a ledger gives it back: the same bits, in tensors of its own on the CPU."""
    return delta_from_tensors(delta.to_tensors())


def added_up(deltas: Sequence[Delta]) -> Delta:
    """Make one delta of several, equal up to rounding to all of them in this order. Raises `ValueError` for two memories."""
    return _joined(chained, deltas)


def joined_in_series(deltas: Sequence[Delta]) -> Delta:
    """Join deltas into one with the same bits as all of them in this order. Raises `ValueError` for two memories."""
    return _joined(in_series, deltas)


def _joined(sum_up: Callable[[Sequence[WeightDelta]], WeightDelta], deltas: Sequence[Delta]) -> Delta:
    weights, memory = split_by_kind(deltas)
    return joint(sum_up(weights), one_change(memory) if memory else None)


def joint(weights: WeightDelta, memory: MemoryDelta | None) -> Delta:
    """Make one delta of a change of weights, which may be empty, and one of a memory, if there is one."""
    if memory is None:
        return weights
    return JointDelta(weights, memory) if weights.parts else memory


def split_by_kind(deltas: Sequence[Delta]) -> tuple[list[WeightDelta], list[MemoryDelta]]:
    """Split deltas by kind, a joint one into its parts. Changes without matrices are left out."""
    weights = [found for found in map(weights_of, deltas) if found.parts]
    return weights, [found for found in map(memory_of, deltas) if found is not None]


def weights_of(delta: Delta) -> WeightDelta:
    """Return the change of weights of any delta; one without matrices if it has none."""
    if isinstance(delta, JointDelta):
        return delta.weights
    return delta if isinstance(delta, WeightDelta) else WeightDelta({})


def memory_of(delta: Delta) -> MemoryDelta | None:
    """Return the change of a memory of any delta; None if it has none."""
    if isinstance(delta, JointDelta):
        return delta.memory
    return delta if isinstance(delta, MemoryDelta) else None


def weights_alone(delta: Delta, who: str) -> WeightDelta:
    """Return a change of weights. Raises `ValueError` for one of a memory, which `who` does not take."""
    if (memory := memory_of(delta)) is not None:
        raise ValueError(f"the edits are kept in a memory of kind {memory.kind}, and {who} takes changes of weights alone")
    return weights_of(delta)
