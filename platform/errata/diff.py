"""What lies between two versions: edits, the norm of the change, scores side by side.

O out-features, I in-features, R the columns of all factors between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from errata.delta import LowRank, Part, chained
from errata.edit import Edit
from errata.ledger import Ledger
from errata.lineage import common_ancestor, live_edits

BLOCK = 1024  # columns whose inner products with all others are held at a time


def diff(ledger: Ledger, a: int, b: int) -> dict[str, Any]:
    """From version `a` to `b`.

    {"from", "to", "common": the last version that both come from, "added" and "removed": the edits that only `b`, only `a`
    holds, "norms": the Frobenius norm of W_b - W_a by matrix, "scorecard": {name: [of a, of b]} of the numbers that either
    has}. Raises `UnknownVersion`.
    """
    common = common_ancestor(ledger, a, b)
    of_a, of_b = (_by_identity(ledger, number) for number in (a, b))
    return {
        "from": a,
        "to": b,
        "common": common,
        "added": [edit.to_json() for key, edit in of_b.items() if key not in of_a],
        "removed": [edit.to_json() for key, edit in of_a.items() if key not in of_b],
        "norms": _norms(ledger, common, a, b),
        "scorecard": _side_by_side(ledger.version(a).scorecard, ledger.version(b).scorecard),
    }


def _by_identity(ledger: Ledger, number: int) -> dict[str | Edit, Edit]:
    return {edit.id or edit: edit for edit in live_edits(ledger, number)}


def _norms(ledger: Ledger, common: int, a: int, b: int) -> dict[str, float]:
    """The change from `a` to `b` is that from their common ancestor to `b`, less that to `a`."""
    to_a, to_b = ([ledger.delta(n) for n in ledger.chain(number) if n > common] for number in (a, b))
    between = chained([*to_b, *(delta.scaled(-1.0) for delta in to_a)])
    return {name: norm(part) for name, part in between}


def norm(part: Part) -> float:
    """Frobenius norm, of factors by their inner products: `|U Vᵀ|² = Σ (Uᵀ U ∘ Vᵀ V)`, in fp64 because they may cancel."""
    if not isinstance(part, LowRank):
        return part.norm()
    U_OR, V_IR = part.U_OR.double(), part.V_IR.double()
    total = torch.zeros((), dtype=torch.float64)
    for block in range(0, part.rank, BLOCK):
        columns = slice(block, block + BLOCK)
        total += _inner(U_OR[:, columns], U_OR, V_IR[:, columns], V_IR)
    return float(total.clamp(min=0).sqrt())


def _inner(left_OB: Tensor, U_OR: Tensor, right_IB: Tensor, V_IR: Tensor) -> Tensor:
    return ((left_OB.T @ U_OR) * (right_IB.T @ V_IR)).sum()


def _side_by_side(of_a: Mapping[str, Any], of_b: Mapping[str, Any]) -> dict[str, list[float | None]]:
    names = [name for name in {**of_a, **of_b} if any(_is_number(card.get(name)) for card in (of_a, of_b))]
    return {name: [card[name] if _is_number(card.get(name)) else None for card in (of_a, of_b)] for name in names}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
