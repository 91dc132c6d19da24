"""The keys of past edits, for every editor that protects them: in the state as tensors, and in memory as metrics.

Of a saved state the metrics are made again, block by block as they grew, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from errata.editors.solve import KeyPreconditioner, remember_together
from errata.editors.state import EditorState


def with_keys(
    metrics: Mapping[str, KeyPreconditioner], keys: Mapping[str, Tensor], memory: float
) -> dict[str, KeyPreconditioner]:
    """The metrics after keys were written at; `memory` is the weight of an edited key beside the base model's."""
    if not memory:
        return dict(metrics)
    alike: dict[torch.Size, list[str]] = {}
    for name in metrics:
        alike.setdefault(keys[name].shape, []).append(name)
    found: dict[str, KeyPreconditioner] = {}
    for names in alike.values():
        grown = remember_together([metrics[name] for name in names], [keys[name] for name in names], memory)
        found |= dict(zip(names, grown, strict=True))
    return {name: found[name] for name in metrics}


def preconditioners_of(
    state: EditorState, bases: Callable[[], Mapping[str, Tensor]], memory: float
) -> dict[str, KeyPreconditioner]:
    """By input, with every past key of the state. `bases` gives the metrics without a past, when they are needed."""
    if "metrics" in state.derived:
        found: dict[str, KeyPreconditioner] = state.derived["metrics"]
        return found
    metrics = {name: KeyPreconditioner.start(base_II) for name, base_II in bases().items()}
    if "num_rows" in state.tensors:
        counts = state.tensors["num_rows"].tolist()
        blocks = {name: state.tensors[name].to(metric.base_II.device).split(counts) for name, metric in metrics.items()}
        for i in range(len(counts)):
            metrics = with_keys(metrics, {name: parts[i] for name, parts in blocks.items()}, memory)
    return metrics


def next_state(
    state: EditorState, num_edits: int, metrics: Mapping[str, KeyPreconditioner], keys: Mapping[str, Tensor], memory: float
) -> EditorState:
    """The state when `num_edits` more have been written at `keys`. Without memory no key is kept; other tensors of it stay."""
    if not metrics or not memory:
        return EditorState(state.num_edits + num_edits, state.tensors, {"metrics": metrics} if metrics else {})
    num_rows = torch.tensor([len(next(iter(keys.values())))])
    return state.grown(num_edits, {**keys, "num_rows": num_rows}, {"metrics": with_keys(metrics, keys, memory)})
