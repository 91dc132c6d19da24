"""Differences between two versions: edits, answers, the norm of the change by matrix, and scores side by side.

O out-features, I in-features, R columns of all factors between the two, B columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from errata.delta.kinds import weights_of
from errata.delta.parts import Dense, LowRank, Part, Sparse, pieces
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit
from errata.history.budget import WalkBudget
from errata.history.lineage import common_ancestor, live_versions
from errata.ledger import Ledger
from errata.text.dialogue import Prompt

BLOCK = 1024  # Columns whose inner products with all others are in memory at a time.


def diff(ledger: Ledger, a: int, b: int, budget: WalkBudget | None = None) -> dict[str, Any]:
    """Compare version `b` with version `a`.

    {"from", "to", "common": the last common ancestor, "added" and "removed": the edits that only `b` or only `a` holds,
    "answers": {"prompt", "from", "to"} of those edits whose answers differ, as they were when the edit was made,
    "norms": the Frobenius norm of W_b - W_a by matrix, "scorecard": {name: [of a, of b]} of the numbers that either has}.
    The deltas between the two count against `budget`. Raises `UnknownVersion`, and `WalkTooLong` and `WalkStopped` as it does.
    """
    budget = budget or WalkBudget()
    common = common_ancestor(ledger, a, b)
    budget.take(sum(between > common for number in (a, b) for between in ledger.chain(number)))
    of_a, of_b = (_by_identity(ledger, number, budget) for number in (a, b))
    added = [held for key, held in of_b.items() if key not in of_a]
    removed = [held for key, held in of_a.items() if key not in of_b]
    return {
        "from": a,
        "to": b,
        "common": common,
        "added": [held.edit.to_json() for held in added],
        "removed": [held.edit.to_json() for held in removed],
        "answers": _changed_answers(added, removed),
        "norms": _norms(_between(ledger, common, a, b, budget)),
        "scorecard": _side_by_side(ledger.version(a).scorecard, ledger.version(b).scorecard),
    }


class _Held(NamedTuple):
    """An edit with the answers to its prompt before it was made and after; None where they were not recorded."""

    edit: Edit
    before: str | None = None
    after: str | None = None


def _by_identity(ledger: Ledger, number: int, budget: WalkBudget) -> dict[str | Edit, _Held]:
    return {
        edit.id or edit: _Held(edit, *(answers or ()))
        for version in live_versions(ledger, number, budget.step)
        for edit, answers in zip_longest(version.edits, version.scorecard.get("answers", ())[: len(version.edits)])
    }


def _changed_answers(added: Sequence[_Held], removed: Sequence[_Held]) -> list[dict[str, str]]:
    """List the recorded answers that differ; of two edits of one prompt the later answer counts on each side."""
    pairs: dict[Prompt, tuple[str | None, str | None]] = {}
    for held in removed:
        pairs[held.edit.prompt] = (held.after, pairs.get(held.edit.prompt, (None, held.before))[1])
    for held in added:
        pairs[held.edit.prompt] = (pairs.get(held.edit.prompt, (held.before, None))[0], held.after)
    return [
        {"prompt": str(prompt), "from": one, "to": other}
        for prompt, (one, other) in pairs.items()
        if one is not None and other is not None and one != other
    ]


def _norms(deltas: Iterable[WeightDelta]) -> dict[str, float]:
    """Return the norm of the sum of the deltas, by matrix."""
    sums: dict[str, _Sum] = {}
    for delta in deltas:
        for name, part in delta:
            for piece in pieces(part):
                sums.setdefault(name, _Sum(part.shape)).add(piece)
    return {name: of_matrix.norm() for name, of_matrix in sums.items()}


def _between(ledger: Ledger, common: int, a: int, b: int, budget: WalkBudget) -> Iterator[WeightDelta]:
    """Yield the change from `a` to `b`: the deltas from the common ancestor to `b`, and those to `a` with the sign changed."""
    for number, sign in ((b, 1.0), (a, -1.0)):
        for between in ledger.chain(number):
            if between > common:
                budget.step()
                delta = ledger.delta(between)
                if (weights := weights_of(delta)).parts:
                    yield weights.scaled(sign)


class _Sum:
    """The change of one matrix: low-rank factors, folded into one fp64 matrix once they hold more numbers than it has.

    Memory, and time per version, are thereby bounded. The inner products of all R columns cost R² (O + I), which from that
    point on exceeds the R O I of adding the factors up.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape, self._factors = shape, list[LowRank]()
        self._matrix_OI: Tensor | None = None

    def add(self, piece: LowRank | Sparse | Dense) -> None:
        if isinstance(piece, LowRank):
            self._factors.append(piece)
            if sum(held.rank for held in self._factors) * sum(self._shape) > self._shape[0] * self._shape[1]:
                self._fold()
        else:
            self._matrix().add_(piece.dense())

    def _fold(self) -> None:
        joined = _joined(self._factors)
        self._factors = []
        self._matrix().addmm_(joined.U_OR.double(), joined.V_IR.double().T)

    def _matrix(self) -> Tensor:
        if self._matrix_OI is None:
            self._matrix_OI = torch.zeros(self._shape, dtype=torch.float64)
        return self._matrix_OI

    def norm(self) -> float:
        if self._matrix_OI is None:
            return norm(_joined(self._factors))
        if self._factors:
            self._fold()
        return float(self._matrix_OI.norm())


def _joined(factors: Sequence[LowRank]) -> LowRank:
    return LowRank(torch.cat([each.U_OR for each in factors], 1), torch.cat([each.V_IR for each in factors], 1))


def norm(part: Part) -> float:
    """Return the Frobenius norm; of factors `|U Vᵀ|² = Σ (Uᵀ U ∘ Vᵀ V)`, in fp64 because the terms may cancel."""
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
