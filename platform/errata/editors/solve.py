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

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from errata.edit import EditRejected


@dataclass(frozen=True)
class Metric:
    """`P = (B⁻¹ + Σ past kkᵀ)⁻¹`, with `B = (c C + I)⁻¹` held as `base_II` and the past beside it: `P = B - Wᵀ W`.

    `white_mI` is W = F⁻¹ past B, F the Cholesky factor of `I + past B pastᵀ`. It grows by rows: those of n more keys K are
    R⁻¹ K P, R the Cholesky factor of `I + K P Kᵀ`, n by n, so F itself is never needed.
    """

    base_II: Tensor
    white_mI: Tensor
    _last: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def start(cls, base_II: Tensor) -> Metric:
        return cls(base_II, base_II.new_zeros((0, base_II.shape[0])))

    @classmethod
    def resume(cls, base_II: Tensor, past_mI: Tensor) -> Metric:
        return cls.start(base_II).remember(past_mI)

    def remember(self, keys_nI: Tensor, weight: float = 1.0) -> Metric:
        """With more past rows, `weight` times as heavy as the base model's, until they are folded: at n² I beside `apply`.

        Raises `EditRejected` if the keys are not finite.
        """
        if 2 * len(self.white_mI) > len(self.base_II):
            return self.folded().remember(keys_nI, weight)
        applied_nI = self.apply(keys_nI)
        added_nn = weight * (keys_nI.to(applied_nI) @ applied_nI.T)
        added_nn.diagonal().add_(1.0)
        right_nn = _cholesky(added_nn, "the keys of the edits are not finite or too large")
        white_nI = torch.linalg.solve_triangular(right_nn, weight**0.5 * applied_nI, upper=False)
        return Metric(self.base_II, torch.cat([self.white_mI, white_nI]))

    def folded(self) -> Metric:
        """The same metric with its past in `base_II`: beyond I / 2 past rows, I by I is the form that costs less to apply."""
        P_II = self.base_II - self.white_mI.T @ self.white_mI
        return Metric.start(0.5 * (P_II + P_II.T))

    def apply(self, keys_nI: Tensor) -> Tensor:
        """`K P`, row by row; of the last keys it is kept, since what a solve makes of them, remembering them needs again."""
        if not self._last or self._last[0] is not keys_nI:
            keys_64 = keys_nI.to(self.base_II)
            applied_nI = keys_64 @ self.base_II
            if len(self.white_mI):
                applied_nI -= (keys_64 @ self.white_mI.T) @ self.white_mI
            self._last[:] = keys_nI, applied_nI
        return self._last[1]


def metric_base(moment_II: Tensor, strength: float) -> Tensor:
    """`(c C + I)⁻¹` in fp64: once per matrix, and never again."""
    moment_II = moment_II.double()
    eye = torch.eye(len(moment_II), dtype=torch.float64, device=moment_II.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(strength * moment_II + eye))


@dataclass(frozen=True)
class Rows:
    """What a solve needs of the keys alone, once for all matrices with this input: `V_nI` and the Gram matrix `V Kᵀ`, fp64."""

    keys_nI: Tensor
    V_nI: Tensor
    gram_nn: Tensor
    _inverses: dict[float, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, keys_nI: Tensor, metric: Metric | None = None) -> Rows:
        V_nI = metric.apply(keys_nI) if metric else keys_nI.double()
        gram_nn = V_nI @ keys_nI.to(V_nI).T
        return cls(keys_nI, V_nI.float(), 0.5 * (gram_nn + gram_nn.T))

    def solve(self, wanted_nO: Tensor, log_ridge: Tensor) -> Tensor:
        """`Z_nO` in fp32; it carries gradients to `wanted_nO` and `log_ridge`. Raises `EditRejected` if it has no solution."""
        return _RidgeSolve.apply(self._inverse(log_ridge), wanted_nO, log_ridge)

    @torch.no_grad()
    def _inverse(self, log_ridge: Tensor) -> Tensor:
        """`(gram + λ I)⁻¹`, made once for all passes over the same keys."""
        known = float(log_ridge)
        if known not in self._inverses:
            ridged_nn = self.gram_nn.clone()
            ridged_nn.diagonal().add_(log_ridge.double().exp())
            factor_nn = _cholesky(ridged_nn, "the ridge is too small for keys so alike, or not finite")
            self._inverses[known] = torch.cholesky_inverse(factor_nn)
        return self._inverses[known]


class _RidgeSolve(torch.autograd.Function):
    """`Z = M⁻¹ D`, M = gram + λ I, with its gradients written out: dD = B = M⁻¹ dZ, dlog λ = -λ <B, Z>.

    M⁻¹ is made, n by n in fp64, and multiplied with: twice as fast as triangular solves with O right-hand sides, whose
    automatic gradient would also be taken by the keys, which need none.
    """

    @staticmethod
    def forward(ctx: Any, inverse_nn: Tensor, wanted_nO: Tensor, log_ridge: Tensor) -> Tensor:
        Z_nO = (inverse_nn @ wanted_nO.double()).float()
        ctx.save_for_backward(inverse_nn, Z_nO, wanted_nO, log_ridge)
        return Z_nO

    @staticmethod
    def backward(ctx: Any, grad_nO: Tensor) -> tuple[None, Tensor, Tensor]:  # type: ignore[override]
        inverse_nn, Z_nO, wanted_nO, log_ridge = ctx.saved_tensors
        B_nO = inverse_nn @ grad_nO.double()
        grad_ridge = -log_ridge.double().exp() * (B_nO * Z_nO.double()).sum()
        return None, B_nO.to(wanted_nO.dtype), grad_ridge.to(log_ridge.dtype)


def _cholesky(matrix_nn: Tensor, failure: str) -> Tensor:
    factor_nn, info = torch.linalg.cholesky_ex(matrix_nn)
    if int(info) or not bool(torch.isfinite(factor_nn).all()):
        raise EditRejected(f"the update has no solution: {failure}")
    return factor_nn


def ridge_dual(keys_nI: Tensor, wanted_nO: Tensor, log_ridge: Tensor) -> tuple[Tensor, Tensor]:
    """(V_nI, Z_nO); Z carries gradients to `wanted_nO` and `log_ridge`."""
    return keys_nI, Rows.of(keys_nI).solve(wanted_nO, log_ridge)


def metric_dual(keys_nI: Tensor, wanted_nO: Tensor, log_ridge: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """(V_nI, Z_nO) in the metric; Z carries gradients to `wanted_nO` and `log_ridge`."""
    rows = Rows.of(keys_nI, metric)
    return rows.V_nI, rows.solve(wanted_nO, log_ridge)
