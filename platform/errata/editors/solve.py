"""The two solvers: ridge, and ridge in a metric that protects what must not move. Both in the dual, n by n, in fp64.

n rows (edited tokens), m past rows, I in-features, O out-features. Rows of `keys_nI` are inputs of the matrix, rows of
`wanted_nO` what its output shall change by there. The answer is a change `ΔW = Z_nOᵀ V_nI`, kept as these two factors.

* ridge:  argmin |K S - D|² + λ|S|²           V = K,    Z = (K Kᵀ + λ I)⁻¹ D
* metric: the same with |S|² = tr(Sᵀ P⁻¹ S)   V = K P,  Z = (K P Kᵀ + λ I)⁻¹ D
  with P = (c C + Σ past kkᵀ + I)⁻¹, C the second moment of keys of the unedited model: it costs to move what the
  model already uses, and what earlier edits wrote.

Source: normal equations of MALMEN (2311.04661) and AlphaEdit/MEMIT (2410.02355, 2210.07229) in their dual form.
The primal solve is I by I, and in fp32 its gradient by λ is rounding noise; the dual one is exact (tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from errata.edit import Code, EditRejected


@dataclass(frozen=True)
class KeyPreconditioner:
    """`P = (B⁻¹ + Σ past kkᵀ)⁻¹`, with `B = (c C + I)⁻¹` held as `base_II` and the past beside it: `P = B - Wᵀ W`.

    `white_mI` is W = F⁻¹ past B, F the Cholesky factor of `I + past B pastᵀ`. It grows by rows: those of n more keys K are
    R⁻¹ K P, R the Cholesky factor of `I + K P Kᵀ`, n by n, so F itself is never needed.
    """

    base_II: Tensor
    white_mI: Tensor
    _last: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def start(cls, base_II: Tensor) -> KeyPreconditioner:
        return cls(base_II, base_II.new_zeros((0, base_II.shape[0])))

    @classmethod
    def resume(cls, base_II: Tensor, past_mI: Tensor) -> KeyPreconditioner:
        return cls.start(base_II).remember(past_mI)

    def remember(self, keys_nI: Tensor, weight: float = 1.0) -> KeyPreconditioner:
        """With more past rows, `weight` times as heavy as the base model's, until they are folded: at n² I beside `apply`.

        Raises `EditRejected` if the keys are not finite.
        """
        return remember_together([self], [keys_nI], weight)[0]

    def folded(self) -> KeyPreconditioner:
        """The same metric with its past in `base_II`: beyond I / 2 past rows, I by I is the form that costs less to apply."""
        P_II = self.base_II - self.white_mI.T @ self.white_mI
        return KeyPreconditioner.start(0.5 * (P_II + P_II.T))

    def apply(self, keys_nI: Tensor) -> Tensor:
        """`K P`, row by row; of the last keys it is kept, since what a solve makes of them, remembering them needs again."""
        if not self._last or self._last[0] is not keys_nI:
            keys_64 = keys_nI.to(self.base_II)
            applied_nI = keys_64 @ self.base_II
            if len(self.white_mI):
                applied_nI -= (keys_64 @ self.white_mI.T) @ self.white_mI
            self._last[:] = keys_nI, applied_nI
        return self._last[1]


def remember_together(metrics: Sequence[KeyPreconditioner], keys: Sequence[Tensor], weight: float) -> list[KeyPreconditioner]:
    """`metrics[i].remember(keys[i], weight)` of each, all keys being of one shape; small factorisations in one call."""
    metrics = [metric.folded() if 2 * len(metric.white_mI) > len(metric.base_II) else metric for metric in metrics]
    applied_MnI = torch.stack([metric.apply(keys_nI) for metric, keys_nI in zip(metrics, keys, strict=True)])
    added_Mnn = weight * (torch.stack(list(keys)).to(applied_MnI) @ applied_MnI.mT)
    added_Mnn.diagonal(dim1=1, dim2=2).add_(1.0)
    right_Mnn = _cholesky(added_Mnn, "the keys of the edits are not finite or too large")
    white_MnI = torch.linalg.solve_triangular(right_Mnn, weight**0.5 * applied_MnI, upper=False)
    return [
        KeyPreconditioner(metric.base_II, torch.cat([metric.white_mI, white_nI]))
        for metric, white_nI in zip(metrics, white_MnI, strict=True)
    ]


def base_preconditioner(moment_II: Tensor, strength: float) -> Tensor:
    """`(c C + I)⁻¹` in fp64: once per matrix, and never again."""
    moment_II = moment_II.double()
    eye = torch.eye(len(moment_II), dtype=torch.float64, device=moment_II.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(strength * moment_II + eye))


@dataclass(frozen=True)
class KeyGram:
    """What a solve needs of the keys alone, once for all matrices with this input: `V_nI` and the Gram matrix `V Kᵀ`, fp64."""

    keys_nI: Tensor
    V_nI: Tensor
    gram_nn: Tensor
    inverses: dict[float, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, keys_nI: Tensor, metric: KeyPreconditioner | None = None) -> KeyGram:
        V_nI = metric.apply(keys_nI) if metric else keys_nI.double()
        gram_nn = V_nI @ keys_nI.to(V_nI).T
        return cls(keys_nI, V_nI.float(), 0.5 * (gram_nn + gram_nn.T))

    def solve(self, wanted_nO: Tensor, log_ridge: Tensor) -> Tensor:
        """`Z_nO` in fp32; it carries gradients to `wanted_nO` and `log_ridge`. Raises `EditRejected` if it has no solution."""
        return solve_together([self], wanted_nO[None], log_ridge[None])[0]


def solve_together(rows: Sequence[KeyGram], wanted_MnO: Tensor, log_ridge_M: Tensor) -> Tensor:
    """`Z_MnO` in fp32, the solution of `rows[m]` for `wanted_MnO[m]`: many small factorisations in one call, which on a GPU
    takes hardly longer than one of them. Gradients and errors as `Rows.solve`.
    """
    return _RidgeSolve.apply(inverses(rows, log_ridge_M), wanted_MnO, log_ridge_M)


@torch.no_grad()
def inverses(rows: Sequence[KeyGram], log_ridge_M: Tensor) -> Tensor:
    """`(gram + λ I)⁻¹` of each, [M, n, n]; they stay with the rows, for every later solve over the same keys by the same λ."""
    ridges: list[float] = log_ridge_M.tolist()
    new = [m for m, ridge in enumerate(ridges) if ridge not in rows[m].inverses]
    if new:
        ridged_mnn = torch.stack([rows[m].gram_nn for m in new])
        ridged_mnn.diagonal(dim1=1, dim2=2).add_(log_ridge_M[new].double().exp()[:, None])
        factor_mnn = _cholesky(ridged_mnn, "the ridge is too small for keys so alike, or not finite")
        for m, inverse_nn in zip(new, torch.cholesky_inverse(factor_mnn), strict=True):
            rows[m].inverses[ridges[m]] = inverse_nn
    return torch.stack([rows[m].inverses[ridge] for m, ridge in enumerate(ridges)])


class _RidgeSolve(torch.autograd.Function):
    """`Z = M⁻¹ D`, M = gram + λ I, with its gradients written out: dD = B = M⁻¹ dZ, dlog λ = -λ <B, Z>.

    M⁻¹ is made, n by n in fp64, and multiplied with: twice as fast as triangular solves with O right-hand sides, whose
    automatic gradient would also be taken by the keys, which need none.
    """

    @staticmethod
    def forward(ctx: Any, inverse_Mnn: Tensor, wanted_MnO: Tensor, log_ridge_M: Tensor) -> Tensor:
        Z_MnO = (inverse_Mnn @ wanted_MnO.double()).float()
        ctx.save_for_backward(inverse_Mnn, Z_MnO, log_ridge_M)
        ctx.wanted_dtype = wanted_MnO.dtype
        return Z_MnO

    @staticmethod
    def backward(ctx: Any, grad_MnO: Tensor) -> tuple[None, Tensor, Tensor]:  # type: ignore[override]
        inverse_Mnn, Z_MnO, log_ridge_M = ctx.saved_tensors
        B_MnO = inverse_Mnn @ grad_MnO.double()
        grad_ridge_M = -log_ridge_M.double().exp() * (B_MnO * Z_MnO.double()).sum((1, 2))
        return None, B_MnO.to(ctx.wanted_dtype), grad_ridge_M.to(log_ridge_M.dtype)


def _cholesky(matrix_nn: Tensor, failure: str) -> Tensor:
    """Of one matrix, or of each of [M, n, n]."""
    factor_nn, info = torch.linalg.cholesky_ex(matrix_nn)
    if not bool((info == 0).all() & torch.isfinite(factor_nn).all()):
        raise EditRejected(f"the update has no solution: {failure}", code=Code.UNSOLVABLE)
    return factor_nn


def ridge_dual(keys_nI: Tensor, wanted_nO: Tensor, log_ridge: Tensor) -> tuple[Tensor, Tensor]:
    """(V_nI, Z_nO); Z carries gradients to `wanted_nO` and `log_ridge`."""
    return keys_nI, KeyGram.of(keys_nI).solve(wanted_nO, log_ridge)


def preconditioned_dual(
    keys_nI: Tensor, wanted_nO: Tensor, log_ridge: Tensor, metric: KeyPreconditioner
) -> tuple[Tensor, Tensor]:
    """(V_nI, Z_nO) in the metric; Z carries gradients to `wanted_nO` and `log_ridge`."""
    rows = KeyGram.of(keys_nI, metric)
    return rows.V_nI, rows.solve(wanted_nO, log_ridge)
