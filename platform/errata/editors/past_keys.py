"""Past keys of the editors that protect earlier edits: rows in the state, and key preconditioners derived from them.

From a saved state the preconditioners are computed again block by block, in the order of the edits, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from errata.editors.solve import KeyGram, KeyPreconditioner, remember_together
from errata.editors.state import EditorState


def with_keys(
    preconditioners: Mapping[str, KeyPreconditioner],
    keys: Mapping[str, Tensor],
    weight: float,
    grams: Mapping[str, KeyGram] | None = None,
) -> dict[str, KeyPreconditioner]:
    """Return the preconditioners with the keys of one batch; `weight` is that of past keys beside the unedited model's.

    `grams` are those of the same keys in the same preconditioners, where a solve has computed them: they save a product.
    """
    if not weight:
        return dict(preconditioners)
    by_shape: dict[torch.Size, list[str]] = {}
    for name in preconditioners:
        by_shape.setdefault(keys[name].shape, []).append(name)
    found: dict[str, KeyPreconditioner] = {}
    for names in by_shape.values():
        products = [grams[name].product_nI if grams and name in grams else None for name in names]
        before = [preconditioners[name] for name in names]
        after = remember_together(before, [keys[name] for name in names], weight, products)
        found |= dict(zip(names, after, strict=True))
    return {name: found[name] for name in preconditioners}


def preconditioners_of(
    state: EditorState, bases: Callable[[], Mapping[str, Tensor]], weight: float
) -> dict[str, KeyPreconditioner]:
    """Return the preconditioners by input, with every past key of the state.

    `bases` computes those without past keys; it is called only if the state does not hold the result already.
    """
    if "preconditioners" in state.derived:
        found: dict[str, KeyPreconditioner] = state.derived["preconditioners"]
        return found
    found = {name: KeyPreconditioner.start(base_II) for name, base_II in bases().items()}
    if "num_rows" in state.tensors:
        counts = state.tensors["num_rows"].tolist()
        blocks = {name: state.tensors[name].to(one.base_II.device).split(counts) for name, one in found.items()}
        for i in range(len(counts)):
            found = with_keys(found, {name: parts[i] for name, parts in blocks.items()}, weight)
    return found


def next_state(
    state: EditorState,
    num_edits: int,
    preconditioners: Mapping[str, KeyPreconditioner],
    keys: Mapping[str, Tensor],
    weight: float,
    grams: Mapping[str, KeyGram] | None = None,
) -> EditorState:
    """Return the state after `num_edits` more edits, written at `keys`; other tensors stay. With weight 0, no key is kept."""
    if not preconditioners or not weight:
        derived = {"preconditioners": preconditioners} if preconditioners else {}
        return EditorState(state.num_edits + num_edits, state.tensors, derived)
    num_rows = torch.tensor([len(next(iter(keys.values())))])
    after = with_keys(preconditioners, keys, weight, grams)
    return state.grown(num_edits, {**keys, "num_rows": num_rows}, {"preconditioners": after})
