"""The kinds of a delta: a change of weights, or of a memory beside them. What works for both is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from errata.delta.memory_delta import ABOUT, MemoryDelta, one_change
from errata.delta.weight_delta import WeightDelta, chained, in_series

Delta = WeightDelta | MemoryDelta


def delta_from_tensors(tensors: Mapping[str, Tensor]) -> Delta:
    """Build a delta from the result of `to_tensors`. Raises `ValueError` for other tensors."""
    return MemoryDelta.from_tensors(tensors) if ABOUT in tensors else WeightDelta.from_tensors(tensors)


def load_delta(path: str | Path, device: Any = "cpu") -> Delta:
    """Read a file that `save` wrote. Raises `SafetensorError` or `ValueError` for any other file."""
    return delta_from_tensors(load_file(str(path), device=str(device)))


def stored(delta: Delta) -> Delta:
    """Return the delta as a ledger gives it back: the same bits, in tensors of its own on the CPU."""
    return delta_from_tensors(delta.to_tensors())


def added_up(deltas: Sequence[Delta]) -> Delta:
    """Make one delta of several, equal up to rounding to all of them in this order. Raises `ValueError` for mixed kinds."""
    weights, memory = split_by_kind(deltas)
    return one_change(memory) if memory else chained(weights)


def joined_in_series(deltas: Sequence[Delta]) -> Delta:
    """Join deltas into one with the same bits as all of them in this order. Raises `ValueError` for mixed kinds."""
    weights, memory = split_by_kind(deltas)
    return one_change(memory) if memory else in_series(weights)


def split_by_kind(deltas: Sequence[Delta]) -> tuple[list[WeightDelta], list[MemoryDelta]]:
    """Split deltas by kind; one of the two lists is empty. Raises `ValueError` if there are both, without empty ones."""
    weights = [delta for delta in deltas if isinstance(delta, WeightDelta) and delta.parts]
    memory = [delta for delta in deltas if isinstance(delta, MemoryDelta)]
    if weights and memory:
        raise ValueError("changes of weights and of a memory do not make one change: one editor makes either")
    return weights, memory


def weights_alone(delta: Delta, who: str) -> WeightDelta:
    """Return a change of weights. Raises `ValueError` for one of a memory, which `who` does not take."""
    if isinstance(delta, MemoryDelta):
        raise ValueError(f"the edits are kept in a memory of kind {delta.kind}, and {who} takes changes of weights alone")
    return delta
