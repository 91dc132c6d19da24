"""Past keys of the editors that protect earlier edits: rows in the state, and key preconditioners derived from them.

A key whose edit is superseded, by a later edit of the same prompt, is no past key any more: it is taken out of the
preconditioners before the later edit is made, whose keys replace it. Its rows stay in the state. From a saved state the
preconditioners are computed again block by block, in the order of the edits, to the same bits. States of earlier releases do
not say whose keys they hold; those stay.
m rows of keys, n rows of one batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from errata.edit import Edit, EditBatch
from errata.editors.solve import KeyGram, KeyPreconditioner, remember_together
from errata.editors.state import EditorState

# The prompts of each row's edit as hashes, [m, 2]; a second one is there for an edit in two forms. What is derived from them is
# an array, because the number of superseded rows is needed even where tensors have no values (benchmarks/accounting.py).
PROMPTS, UNKNOWN, REPLACED = "prompts", 0, -1
Hashes = NDArray[np.int64]


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


def preconditioners_for(
    batch: EditBatch, state: EditorState, bases: Callable[[], Mapping[str, Tensor]], weight: float
) -> dict[str, KeyPreconditioner]:
    """Return the preconditioners by input for an edit of `batch`: with the past keys that it does not replace.

    `bases` computes those without past keys; it is called only if the state does not hold the result already. Raises
    `EditRejected` for keys that cannot be taken out.
    """
    if "preconditioners" in state.derived:
        found: dict[str, KeyPreconditioner] = state.derived["preconditioners"]
    else:
        found = {name: KeyPreconditioner.start(base_II) for name, base_II in bases().items()}
        counts = state.tensors["num_rows"].tolist() if "num_rows" in state.tensors else []
        blocks = {name: state.tensors[name].to(one.base_II.device).split(counts) for name, one in found.items() if counts}
        for i, (replaced_n, _) in enumerate(_history(state)):
            found = _without(found, state, replaced_n, weight)
            found = with_keys(found, {name: parts[i] for name, parts in blocks.items()}, weight)
    return _without(found, state, _superseded(_prompts(state), _hashes_of(batch.edits)), weight)


def past_keys(batch: EditBatch, state: EditorState, name: str) -> Tensor:
    """Return the past keys of one input for an edit of `batch`, without those that it or an earlier edit replaces."""
    keys_mI, prompts_m2 = state.tensors[name], _prompts(state)
    is_past_m = prompts_m2[:, 0] != REPLACED
    is_past_m[_superseded(prompts_m2, _hashes_of(batch.edits))] = False
    return keys_mI if is_past_m.all() else keys_mI[torch.from_numpy(is_past_m).to(keys_mI.device)]


def next_state(
    state: EditorState,
    edits: Sequence[Edit],
    preconditioners: Mapping[str, KeyPreconditioner],
    keys: Mapping[str, Tensor],
    weight: float,
    grams: Mapping[str, KeyGram] | None = None,
    num_edits: int | None = None,
) -> EditorState:
    """Return the state after more edits, written at `keys` with the preconditioners for them; other tensors stay.

    `edits` has the edit of each row of keys; `num_edits` counts those of the batch. With weight 0, no key is kept.
    """
    num_edits = len(edits) if num_edits is None else num_edits
    if not preconditioners or not weight:
        kept = {"preconditioners": preconditioners} if preconditioners else {}
        return EditorState(state.num_edits + num_edits, state.tensors, kept)
    own_n2, before_m2 = _hashes_of(edits), _prompts(state)
    named_n2 = own_n2 if PROMPTS in state.tensors else np.concatenate([before_m2, own_n2])
    rows = {**keys, "num_rows": torch.tensor([len(own_n2)]), PROMPTS: torch.from_numpy(named_n2)}
    after = with_keys(preconditioners, keys, weight, grams)
    return state.grown(num_edits, rows, {"preconditioners": after, PROMPTS: _after(before_m2, own_n2)})


def edits_by_answer(batch: EditBatch, answer_lengths: Sequence[int]) -> list[Edit]:
    """Return the edit of each answer token of a batch; `answer_lengths` counts them by request."""
    return [batch.edits[row.edit] for row, count in zip(batch.rows, answer_lengths, strict=True) for _ in range(count)]


def _without(
    preconditioners: Mapping[str, KeyPreconditioner], state: EditorState, rows_n: NDArray[np.intp], weight: float
) -> dict[str, KeyPreconditioner]:
    """Return the preconditioners without these rows of the state's keys."""
    if not len(rows_n) or not weight:
        return dict(preconditioners)
    rows = torch.from_numpy(rows_n)
    return {name: one.forget(state.blocks[name].rows(rows), weight) for name, one in preconditioners.items()}


def _history(state: EditorState) -> Iterator[tuple[NDArray[np.intp], Hashes]]:
    """Yield, for each block of keys, the earlier rows that it replaced and the prompts of all rows after it."""
    if "num_rows" not in state.tensors:
        return
    counts: list[int] = state.tensors["num_rows"].tolist()
    known_m2 = state.tensors[PROMPTS].cpu().numpy() if PROMPTS in state.tensors else np.full((sum(counts), 2), UNKNOWN)
    now_m2 = known_m2[:0]
    for own_n2 in np.split(known_m2, np.cumsum(counts)[:-1]):
        replaced_n, now_m2 = _superseded(now_m2, own_n2), _after(now_m2, own_n2)
        yield replaced_n, now_m2


def _prompts(state: EditorState) -> Hashes:
    """Return the prompts of every row of keys, [m, 2]; those of replaced rows are `REPLACED`."""
    if PROMPTS in state.derived:
        known_m2: Hashes = state.derived[PROMPTS]
        return known_m2
    history = list(_history(state))
    return history[-1][1] if history else np.zeros((0, 2), np.int64)


def _superseded(prompts_m2: Hashes, own_n2: Hashes) -> NDArray[np.intp]:
    """Return the rows of earlier edits that share a prompt with `own_n2`."""
    return np.flatnonzero(np.isin(prompts_m2, own_n2[own_n2 != UNKNOWN]).any(1))


def _after(prompts_m2: Hashes, own_n2: Hashes) -> Hashes:
    now_m2 = prompts_m2.copy()
    now_m2[_superseded(prompts_m2, own_n2)] = REPLACED
    return np.concatenate([now_m2, own_n2])


def _hashes_of(edits: Sequence[Edit]) -> Hashes:
    """Return the hashes of each edit's prompts, [n, 2]: equal where `Edit.keys` are, in every process."""
    by_edit = {edit: _hashes(edit) for edit in dict.fromkeys(edits)}
    return np.array([by_edit[edit] for edit in edits], np.int64).reshape(-1, 2)


def _hashes(edit: Edit) -> list[int]:
    digests = sorted(hashlib.sha256(repr(key).encode()).digest() for key in edit.keys)
    numbers = [1 + int.from_bytes(digest[:7], "big") for digest in digests]
    return [*numbers, UNKNOWN][:2]
