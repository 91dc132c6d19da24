"""Normal equations of an additive editor: batches solved again without some of their edits, without the model.

A batch b asks a matrix W for targets T_b at keys K_b, and is a ridge solve in dual form beside the past keys (solve.py):

    ΔW_b = D_bᵀ (K_b P_b K_bᵀ + λ I)⁻¹ K_b P_b,   D_b = T_b - K_b W_bᵀ,   P_b = (P_0⁻¹ + w Σ past k kᵀ)⁻¹

with W_b the matrix before the batch. All that an edit contributes are its rows (k, t): a row of its batch's system, the term
w k kᵀ of every later P⁻¹, and its part of every later W_b. The batches without the rows S follow from what the ledger holds:

    K_b    the keys in the editor's state; where these are not the solved ones, V_b P_b⁺, V_b = K_b P_b the right factor of ΔW_b
    D_b    (K_b P_b K_bᵀ + λ I) Z_b, Z_b the left factor
    D'_b   D_b + K_b (W_b - W'_b)ᵀ where an editor wants outputs, T_b; D_b where it wants a change of them, as a gradient gives
    P'_b   (P_b⁻¹ - w Σ_S k kᵀ)⁻¹, the preconditioner down-dated by the rows that are gone

and ΔW'_b is the solve of the rows of b that stay. The first batch with a row of S is the first that changes. For λ w = 1 the
sequence is one ridge regression over all rows, W_n = W_0 + Aᵀ P_n with A = Σ (t - W_0 k) kᵀ (recursive least squares), and the
result is W_0 + (A - A_S)ᵀ P'_n; a test compares both.

It is exact for the same targets at the same keys. A model that never had the edits differs where a later target, or a key
behind another edited matrix, was found with them in place. Several passes at the same keys are one solve for the sum of what
they asked for. What cannot be written in this form raises `EditRejected` with the code `not_additive`.
n rows of a batch, I in-features, O out-features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from errata.delta.parts import LowRank, Piece
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.past_keys import next_state, past_keys, preconditioners_for
from errata.editors.solve import KeyGram, KeyPreconditioner
from errata.editors.state import EditorState

TOLERANCE = 1e-4  # relative; factors are fp32 and differ by 1e-6 from the same computed again

Fixed = Literal["outputs", "changes"]
Factors = Mapping[str, LowRank]
Rows = Mapping[str, Tensor]


class Call(NamedTuple):
    """One call of an editor: its edits, those of them that stay, and the factors of its change by matrix."""

    edits: tuple[Edit, ...]
    stay: tuple[Edit, ...]
    factors: Factors


@dataclass(frozen=True)
class NormalEquations:
    """The equations of one editor on one model, by matrix.

    `log_ridges` are log λ, `sources` name the input whose keys and preconditioner a matrix uses, `weight` is w, and `bases`
    computes P_0 by input; an input without one has the identity. `edits_of_rows` gives the edit of each row of a batch. The
    matrices `recovered` were not solved at the keys in the state, or the state has none: theirs come from the factors. `fixes`
    says what stays the same when earlier batches change: the outputs that were asked for, or the changes of outputs.
    """

    log_ridges: Mapping[str, Tensor]
    sources: Mapping[str, str]
    weight: float
    bases: Callable[[], Mapping[str, Tensor]]
    edits_of_rows: Callable[[EditBatch], Sequence[Edit]]
    recovered: frozenset[str] = frozenset()
    fixes: Fixed = "outputs"

    def calls(self, parts: Mapping[str, Piece], made: Sequence[tuple[Sequence[Edit], Sequence[Edit]]]) -> list[Call]:
        """Split the change of several calls, joined row by row, into these; `made` has the edits of each, and what stays.

        Raises `EditRejected` if the factors are not those of these rows.
        """
        counts = [len(self.edits_of_rows(EditBatch(tuple(edits)))) for edits, _ in made]
        split = {name: list(_split(parts.get(name), counts)) for name in self.log_ridges}
        return [
            Call(tuple(edits), tuple(stay), {name: own[i] for name, own in split.items()})
            for i, (edits, stay) in enumerate(made)
        ]

    @torch.no_grad()
    def without(self, calls: Sequence[Call], before: EditorState, after: EditorState) -> tuple[list[WeightDelta], EditorState]:
        """Solve calls again for the edits that stay; a call of which nothing stays makes an empty change.

        `before` is the editor's state before the first call, `after` that after the last one, as they were made. Returns the
        changes and the state after them. Raises `EditRejected`.
        """
        sequence = _Sequence(self, before)
        deltas = [sequence.next(call, keys) for call, keys in zip(calls, self._keys(calls, before, after), strict=True)]
        return deltas, sequence.now

    def _keys(self, calls: Sequence[Call], before: EditorState, after: EditorState) -> Iterator[Rows]:
        """Yield the state's keys of each call by input, none if it keeps none."""
        if not self.weight or not self.bases():
            yield from ({} for _ in calls)
            return
        known, counts = _num_rows(before), _num_rows(after)
        own = [len(self.edits_of_rows(EditBatch(call.edits))) for call in calls]
        if counts[: len(known)] != known or counts[len(known) :] != own:
            raise not_additive("the editor's state does not hold the keys of these edits one by one")
        first = sum(known)
        names = dict.fromkeys(self.sources.values())
        rows = {name: after.tensors[name][first:].split(own) for name in names}
        yield from ({name: rows[name][i] for name in names} for i in range(len(calls)))


class _Sequence:
    """Two sequences of calls side by side: `then` is the state of those that were made, `now` that without some edits."""

    def __init__(self, equations: NormalEquations, before: EditorState) -> None:
        self.equations, self.then, self.now = equations, before, before
        self.bases = _Inverses(equations.bases())
        self.gone = {name: _Difference() for name in equations.log_ridges}

    def next(self, call: Call, keys: Rows) -> WeightDelta:
        """Solve one call again, whose rows in the state are `keys`, and return the change."""
        batch, weight = EditBatch(call.edits), self.equations.weight
        edits = self.equations.edits_of_rows(batch)
        old = preconditioners_for(batch, self.then, lambda: self.bases.by_input, weight)
        solved = {name: self._solved(name, made, keys, batch, old) for name, made in call.factors.items()}
        parts = self._again(call, keys, edits, solved) if call.stay else {}
        for name, made in call.factors.items():
            self.gone[name].add(made, 1.0)
            if call.stay:
                self.gone[name].add(parts[name], -1.0)
        self.then = next_state(self.then, edits, old, keys, weight, num_edits=len(batch))
        return WeightDelta(parts)

    def _solved(self, name: str, made: LowRank, keys: Rows, batch: EditBatch, old: Mapping[str, KeyPreconditioner]) -> _Solved:
        """Return the keys and wanted changes that a call was solved for at one matrix."""
        source, ridge, weight = self.equations.sources[name], self.equations.log_ridges[name], self.equations.weight
        P = old.get(source)
        V_nI, Z_nO = made.V_IR.T.to(ridge.device).double(), made.U_OR.T.to(ridge.device).double()
        is_recovered = name in self.equations.recovered
        if is_recovered and P is not None:
            past_mI = past_keys(batch, self.then, source) if weight and source in self.then.tensors else None
            keys_nI = self.bases.keys(V_nI, source, past_mI, weight)
        else:
            keys_nI = V_nI if is_recovered else keys[source].to(ridge.device)
        gram = KeyGram.of(keys_nI, P)
        if _differ(gram.V_nI, V_nI):
            raise not_additive(f"the factors of {name} are not those of the keys in the state: it was written otherwise")
        return _Solved(keys_nI, gram.gram_nn @ Z_nO + ridge.double().exp() * Z_nO)

    def _again(self, call: Call, keys: Rows, edits: Sequence[Edit], solved: Mapping[str, _Solved]) -> dict[str, LowRank]:
        """Solve the rows that stay, for the targets that they had, and remember their keys."""
        stay, weight = frozenset(call.stay), self.equations.weight
        index_n = torch.tensor([i for i, edit in enumerate(edits) if edit in stay])
        new = preconditioners_for(EditBatch(call.stay), self.now, lambda: self.bases.by_input, weight)
        parts: dict[str, LowRank] = {}
        for name, was in solved.items():
            own_n = index_n.to(was.keys_nI.device)
            keys_nI = was.keys_nI[own_n]
            wanted_nO = was.wanted_nO[own_n]
            if self.equations.fixes == "outputs":
                wanted_nO = wanted_nO + self.gone[name].at(keys_nI.double())
            gram = KeyGram.of(keys_nI, new.get(self.equations.sources[name]))
            parts[name] = LowRank(gram.solve(wanted_nO, self.equations.log_ridges[name]).T, gram.V_nI.T)
        kept, rows = [edits[i] for i in index_n.tolist()], {name: one[index_n.to(one.device)] for name, one in keys.items()}
        self.now = next_state(self.now, kept, new, rows, weight, num_edits=len(call.stay))
        return parts


class _Solved(NamedTuple):
    """The keys of a call at one matrix, and the changes of the output there that it was solved for, D."""

    keys_nI: Tensor
    wanted_nO: Tensor


@dataclass
class _Difference:
    """The matrix as it was less the matrix without the edits, in factors."""

    U: list[Tensor] = field(default_factory=list)
    V: list[Tensor] = field(default_factory=list)

    def add(self, part: LowRank, sign: float) -> None:
        self.U.append(sign * part.U_OR.double())
        self.V.append(part.V_IR.double())

    def at(self, keys_nI: Tensor) -> Tensor | float:
        """Return the difference of the outputs for these keys, [n, O]."""
        if not self.U:
            return 0.0
        U_OR, V_IR = (torch.cat([one.to(keys_nI) for one in parts], 1) for parts in (self.U, self.V))
        return (keys_nI @ V_IR) @ U_OR.T


class _Inverses:
    """The base preconditioners by input, with their pseudo-inverses, which are computed when keys are recovered."""

    def __init__(self, by_input: Mapping[str, Tensor]) -> None:
        self.by_input = by_input
        self._found: dict[str, Tensor] = {}

    def keys(self, V_nI: Tensor, source: str, past_mI: Tensor | None, weight: float) -> Tensor:
        """Return `V P⁺ = V (P_0⁺ + w Σ past k kᵀ)`: the keys, up to what P does not see of them."""
        if source not in self._found:
            self._found[source] = torch.linalg.pinv(self.by_input[source].double(), hermitian=True)
        keys_nI = V_nI @ self._found[source].to(V_nI)
        if past_mI is not None:
            past_mI = past_mI.to(V_nI)
            keys_nI = keys_nI + weight * ((V_nI @ past_mI.T) @ past_mI)
        return keys_nI


def not_additive(why: str) -> EditRejected:
    """Make the refusal of edits that cannot be taken out of the equations."""
    return EditRejected(why, code=Code.NOT_ADDITIVE)


def _num_rows(state: EditorState) -> list[int]:
    """Return the number of rows of keys by call."""
    counts: list[int] = state.tensors["num_rows"].tolist() if "num_rows" in state.tensors else []
    return counts


def _split(part: Piece | None, counts: Sequence[int]) -> Iterator[LowRank]:
    """Yield the factors of each call, with as many rows as `counts` says; several passes at the same keys are summed."""
    total = sum(counts)
    if not isinstance(part, LowRank) or part.rank % max(total, 1) or not part.rank:
        raise not_additive("a version does not hold one factor for each of the rows that were solved for")
    num_passes = part.rank // total
    ends = list(accumulate(num_passes * count for count in counts))
    for begin, end, count in zip([0, *ends], ends, counts, strict=False):
        U_OR, V_IR = part.U_OR[:, begin:end], part.V_IR[:, begin:end]
        first_IR = V_IR[:, :count]
        if any(_differ(V_IR[:, at : at + count], first_IR) for at in range(count, end - begin, count)):
            raise not_additive("an edit was written in several passes at different keys")
        yield LowRank(U_OR.reshape(len(U_OR), num_passes, count).sum(1), first_IR)


def _differ(one: Tensor, other: Tensor) -> bool:
    """Say if two matrices differ by more than rounding."""
    if one.shape != other.shape:
        return True
    one, other = one.double(), other.double()
    return bool((one - other).norm() > TOLERANCE * other.norm())
