"""Places to write: how well the keys at a matrix and a position tell a fact's rephrasings from its neighbours.

A change that is written at the key k of an edit answers another key k' by the share kᵀ P k' / kᵀ P k of itself, with P the key
preconditioner or, without one, the identity. A place where rephrasings have larger shares than neighbours lets an edit have
both, generalisation and locality; where they do not differ, no setting of an editor can. The measure is the area under the
curve (AUC): the probability that a rephrasing has a larger share of its edit than a neighbour, 0.5 by chance. `cosine` compares
by kᵀ k' / |k| |k'| instead.
Read at the prompt's end an edit meets the end of the other prompt; read at the subject it meets every token of it, of which the
one with the largest share counts. n edits, B other prompts, S sequence, I in-features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from errata.edit import Edit, EditBatch
from errata.editors.closed_form.contexts import Contexts, tokenise_at_subject
from errata.editors.closed_form.locate_then_edit import inputs_at
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Prompt

Read = Literal["prompt", "subject"]


@dataclass(frozen=True)
class PlaceScore:
    """One place: the AUC by the share and by the cosine, and the median share that arrives at each kind of prompt."""

    matrix: str
    position: Read
    auc: float
    auc_cosine: float
    share_rephrasings: float
    share_neighbours: float


@dataclass(frozen=True)
class _Other:
    """A rephrasing or a neighbour of the edit `edit`."""

    edit: int
    prompt: Prompt
    is_rephrasing: bool


def place_scores(
    model: LanguageModel,
    edits: Sequence[Edit],
    names: Sequence[str],
    preconditioners: Mapping[str, Tensor] | None = None,
    batch_size: int = 32,
) -> list[PlaceScore]:
    """Score the matrices `names` at the prompt's end and, with the edits that have a subject, at the subject; the best first.

    `preconditioners` are P by matrix, [I, I]. Raises `ValueError` for edits without rephrasings or without neighbours.
    """
    found: list[PlaceScore] = []
    for position in get_args(Read):
        own = [edit for edit in edits if position == "prompt" or edit.subject is not None]
        others = _others(own)
        if position == "subject" and not others:
            continue
        if len({one.is_rephrasing for one in others}) < 2:
            raise ValueError("places are judged by rephrasings against neighbours: give edits that have both")
        shares = _shares(model, own, others, names, preconditioners or {}, position, batch_size)
        found += [_score(name, position, others, *shares[name]) for name in names]
    return sorted(found, key=lambda place: -place.auc)


def auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Return the probability that a value of `higher` exceeds one of `lower`; ties count half."""
    one, other = torch.tensor(higher, dtype=torch.float64), torch.tensor(lower, dtype=torch.float64)
    ordered = other.sort().values
    below = torch.searchsorted(ordered, one) + torch.searchsorted(ordered, one, right=True)
    return float(below.double().mean()) / (2 * len(other))


def _others(edits: Sequence[Edit]) -> list[_Other]:
    found: list[_Other] = []
    for index, edit in enumerate(edits):
        found += [_Other(index, prompt, True) for text in edit.rephrasings for prompt in edit.ask(text)]
        found += [_Other(index, prompt, False) for probe in edit.locality for prompt in edit.ask(probe.prompt)]
    return found


def _score(name: str, position: Read, others: Sequence[_Other], shares: list[float], cosines: list[float]) -> PlaceScore:
    def of(values: list[float], is_rephrasing: bool) -> list[float]:
        return [value for one, value in zip(others, values, strict=True) if one.is_rephrasing == is_rephrasing]

    near, far = of(shares, True), of(shares, False)
    return PlaceScore(name, position, auc(near, far), auc(of(cosines, True), of(cosines, False)), median(near), median(far))


@torch.no_grad()
def _shares(
    model: LanguageModel,
    edits: Sequence[Edit],
    others: Sequence[_Other],
    names: Sequence[str],
    preconditioners: Mapping[str, Tensor],
    position: Read,
    batch_size: int,
) -> dict[str, tuple[list[float], list[float]]]:
    """Return by matrix, for each other prompt, the share that arrives there and the cosine."""
    in_context = tokenise_at_subject(model, EditBatch(tuple(edits)), Contexts(position=position))
    keys = {name: in_context.mean(rows_BI).double() for name, rows_BI in inputs_at(model, in_context, names).items()}
    duals = {name: _dual(keys_nI, preconditioners.get(name)) for name, keys_nI in keys.items()}
    units = {name: torch.nn.functional.normalize(keys_nI, dim=1) for name, keys_nI in keys.items()}
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for start in range(0, len(others), batch_size):
        part = others[start : start + batch_size]
        edit_B = torch.tensor([one.edit for one in part], device=model.device)
        for name, keys_BSI in _inputs(model, [one.prompt for one in part], names, position).items():
            shares, cosines = found[name]
            shares += _largest(keys_BSI, duals[name][edit_B])
            cosines += _largest(torch.nn.functional.normalize(keys_BSI, dim=2), units[name][edit_B])
    return found


def _dual(keys_nI: Tensor, P_II: Tensor | None) -> Tensor:
    """Return `P k / kᵀ P k` of each key, whose product with another key is the share that arrives there."""
    applied_nI = keys_nI if P_II is None else keys_nI @ P_II.to(keys_nI)
    return applied_nI / (applied_nI * keys_nI).sum(1, keepdim=True)


def _largest(keys_BSI: Tensor, duals_BI: Tensor) -> list[float]:
    """Return the largest product over the tokens; rows of NaN are padding."""
    products_BS = (keys_BSI @ duals_BI[:, :, None])[..., 0]
    largest: list[float] = products_BS.nan_to_num(-torch.inf).max(1).values.tolist()
    return largest


def _inputs(model: LanguageModel, prompts: Sequence[Prompt], names: Sequence[str], position: Read) -> dict[str, Tensor]:
    """Return each matrix's inputs [B, S, I] in fp64: at the prompts' ends, or at all tokens with NaN behind an end."""
    rows = [torch.tensor(model.renderer.ids(prompt)) for prompt in prompts]
    ids_BS = pad_sequence(rows, batch_first=True, padding_value=model.renderer.pad_id).to(model.device)
    length_B = torch.tensor([len(row) for row in rows], device=model.device)
    mask_BS = torch.arange(ids_BS.shape[1], device=model.device) < length_B[:, None]
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            keys_BSI = args[0].to(model.device).double()
            if position == "prompt":
                found[name] = keys_BSI[torch.arange(len(rows), device=model.device), length_B - 1][:, None]
            else:
                found[name] = keys_BSI.masked_fill(~mask_BS[..., None], torch.nan)

        return hook

    handles = [model.module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        model.module.base_model(input_ids=ids_BS, attention_mask=mask_BS.long(), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found
