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
    """`P = (B⁻¹ + Σ past kkᵀ)⁻¹`, with `B = (c C + I)⁻¹` held as `base_II` and the past in Woodbury form.

    Of the keys of earlier edits it holds `seen_mI = past B`, and in `factor_mm` F, the Cholesky factor of `I + past B pastᵀ`.
    """

    base_II: Tensor
    seen_mI: Tensor
    factor_mm: Tensor
    _last: list[Any] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def start(cls, base_II: Tensor) -> Metric:
        return cls(base_II, base_II.new_zeros((0, base_II.shape[0])), base_II.new_zeros((0, 0)))

    @classmethod
    def resume(cls, base_II: Tensor, past_mI: Tensor) -> Metric:
        return cls.start(base_II).remember(past_mI)

    def remember(self, keys_nI: Tensor, weight: float = 1.0) -> Metric:
        """With more past rows, `weight` times as heavy as the base model's: the Cholesky factor grows by a block, at m²n + n³
        instead of (m+n)³, until it is folded.

        Raises `EditRejected` if the keys are not finite.
        """
        if len(self.seen_mI) > len(self.base_II):
            return self.folded().remember(keys_nI, weight)
        scale = weight**0.5
        plain_nI, left_mn = self._projected(keys_nI)
        new_nI, left_mn = scale * plain_nI, scale * left_mn
        corner_nn = scale * (keys_nI.to(new_nI) @ new_nI.T) + torch.eye(len(keys_nI), dtype=new_nI.dtype, device=new_nI.device)
        right_nn = _cholesky(corner_nn - left_mn.T @ left_mn, "the keys of the edits are not finite or too large")
        top = torch.cat([self.factor_mm, torch.zeros_like(left_mn)], 1)
        factor = torch.cat([top, torch.cat([left_mn.T, right_nn], 1)], 0)
        return Metric(self.base_II, torch.cat([self.seen_mI, new_nI]), factor)

    def folded(self) -> Metric:
        """The same metric with its past in `base_II`: with more past rows than in-features, I by I is the smaller form."""
        P_II = self.base_II - self.seen_mI.T @ torch.cholesky_solve(self.seen_mI, self.factor_mm)
        return Metric.start(0.5 * (P_II + P_II.T))

    def apply(self, keys_nI: Tensor) -> Tensor:
        """`K P`, row by row."""
        plain_nI, left_mn = self._projected(keys_nI)
        if not len(left_mn):
            return plain_nI
        weights_mn = torch.linalg.solve_triangular(self.factor_mm.T, left_mn, upper=True)
        return plain_nI - weights_mn.T @ self.seen_mI

    def _projected(self, keys_nI: Tensor) -> tuple[Tensor, Tensor]:
        """`K B` [n, I], and `F⁻¹ past B Kᵀ` [m, n]: what a solve makes of these keys, and remembering them needs again."""
        if self._last and self._last[0] is keys_nI:
            return self._last[1]
        keys_64 = keys_nI.to(self.base_II)
        left_mn = torch.linalg.solve_triangular(self.factor_mm, self.seen_mI @ keys_64.T, upper=False)
        self._last[:] = keys_nI, (keys_64 @ self.base_II, left_mn)
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

    @classmethod
    def of(cls, keys_nI: Tensor, metric: Metric | None = None) -> Rows:
        V_nI = metric.apply(keys_nI) if metric else keys_nI.double()
        gram_nn = V_nI @ keys_nI.to(V_nI).T
        return cls(keys_nI, V_nI.float(), 0.5 * (gram_nn + gram_nn.T))

    def solve(self, wanted_nO: Tensor, log_ridge: Tensor) -> Tensor:
        """`Z_nO` in fp32; it carries gradients to `wanted_nO` and `log_ridge`. Raises `EditRejected` if it has no solution."""
        return _RidgeSolve.apply(self.gram_nn, wanted_nO, log_ridge)


class _RidgeSolve(torch.autograd.Function):
    """`Z = M⁻¹ D`, M = gram + λ I, with its gradients written out: dD = B = M⁻¹ dZ, dlog λ = -λ <B, Z>.

    M⁻¹ is made, n by n in fp64, and multiplied with: twice as fast as triangular solves with O right-hand sides, whose
    automatic gradient would also be taken by the keys, which need none.
    """

    @staticmethod
    def forward(ctx: Any, gram_nn: Tensor, wanted_nO: Tensor, log_ridge: Tensor) -> Tensor:
        ridged_nn = gram_nn.clone()
        ridged_nn.diagonal().add_(log_ridge.double().exp())
        inverse_nn = torch.cholesky_inverse(_cholesky(ridged_nn, "the ridge is too small for keys so alike, or not finite"))
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
