"""The sum of all changes that an editor has made, kept in its state.

For methods that look back at the unedited model, or at the whole of their changes. The sum is kept as factors until whole
matrices are smaller. In a saved state its tensors have the prefix `written|`.
"""

from __future__ import annotations

from collections.abc import Sequence

from errata.delta.parts import on_device, where
from errata.delta.weight_delta import WeightDelta, chained
from errata.editors.state import EditorState

_PREFIX = "written|"


def accumulated_delta(state: EditorState, names: Sequence[str] = ()) -> WeightDelta:
    """Return the sum for the matrices `names`, or for all."""
    sums = WeightDelta.from_tensors(state.without_prefix(_PREFIX, {}).tensors)
    return WeightDelta({name: part for name, part in sums if not names or name in names})


def with_accumulated(state: EditorState, total: WeightDelta) -> EditorState:
    """Return the state with `total` as the sum."""
    return state.with_tensors({_PREFIX + key: tensor for key, tensor in total.to_tensors().items()})


def accumulate(state: EditorState, delta: WeightDelta) -> WeightDelta:
    """Return the sum with one more change, on the devices of that change."""
    sums, devices = accumulated_delta(state), {name: where(part) for name, part in delta}
    moved = {name: on_device(part, devices[name]) if name in devices else part for name, part in sums}
    return chained([WeightDelta(moved), delta]).folded()
