"""The sum of all changes that an editor has made, in its state: for methods that look back at the unedited model or at the
whole of what was written. It is kept as factors until whole matrices are smaller; every version's state holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from errata.delta.parts import on_device, where
from errata.delta.weight_delta import WeightDelta, chained
from errata.editors.state import EditorState

_PREFIX = "written|"


def accumulated_delta(state: EditorState, names: Sequence[str] = ()) -> WeightDelta:
    """Of the matrices `names`, or of all."""
    found = {key.removeprefix(_PREFIX): tensor for key, tensor in state.tensors.items() if key.startswith(_PREFIX)}
    sums = WeightDelta.from_tensors(found)
    return WeightDelta({name: part for name, part in sums if not names or name in names})


def with_accumulated(state: EditorState, total: WeightDelta) -> EditorState:
    """The state with `total` as the sum."""
    return replace(state, tensors={**state.tensors, **{_PREFIX + key: t for key, t in total.to_tensors().items()}})


def accumulate(state: EditorState, delta: WeightDelta) -> WeightDelta:
    """The sum with one more change, where that is."""
    sums, devices = accumulated_delta(state), {name: where(part) for name, part in delta}
    beside = {name: on_device(part, devices[name]) if name in devices else part for name, part in sums}
    return chained([WeightDelta(beside), delta]).folded()
