"""Ridge regression in dual form, plain and with a key preconditioner; n by n systems, in fp64.

n rows (edited tokens), m past rows, I in-features, O out-features, M matrices. Rows of `keys_nI` are inputs of a matrix, rows
of `wanted_nO` the wanted change of its output there. The solution is a change `ΔW = Z_nOᵀ V_nI`, kept as these two factors.

* ridge:           argmin |K S - D|² + λ|S|²           V = K,    Z = (K Kᵀ + λ I)⁻¹ D
* preconditioned:  the same with |S|² = tr(Sᵀ P⁻¹ S)   V = K P,  Z = (K P Kᵀ + λ I)⁻¹ D
  with P = (c C + Σ past kkᵀ + I)⁻¹, C the second moment of the unedited model's keys: a change costs more where the
  model's own keys and those of earlier edits lie.

Source: normal equations of MALMEN (2311.04661) and AlphaEdit/MEMIT (2410.02355, 2210.07229) in their dual form.
The primal system is I by I, and in fp32 its gradient with respect to λ is rounding noise; the dual one is exact (tests).
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
    """The key preconditioner `P = (B⁻¹ + Σ past kkᵀ)⁻¹ = B - Wᵀ W + Xᵀ X`, with `B = (c C + I)⁻¹` held as `base_II`.

    `whitened_mI` is W. It grows by rows: those of n more keys K are R⁻¹ K P, R the Cholesky factor of `I + K P Kᵀ`, n by n.
    `taken_rI` is X, for keys K that were past ones and no longer are: its rows are R⁻¹ K P, R the factor of `I - K P Kᵀ`.
    """

    base_II: Tensor
    whitened_mI: Tensor
    taken_rI: Tensor

    @classmethod
    def start(cls, base_II: Tensor) -> KeyPreconditioner:
        none_0I = base_II.new_zeros((0, base_II.shape[0]))
        return cls(base_II, none_0I, none_0I)

    @classmethod
    def resume(cls, base_II: Tensor, past_mI: Tensor) -> KeyPreconditioner:
        return cls.start(base_II).remember(past_mI)

    def remember(self, keys_nI: Tensor, weight: float = 1.0) -> KeyPreconditioner:
        """Return the preconditioner with more past keys, `weight` times as heavy as those of the unedited model.

        Costs n² I beside `apply`, until the past is folded. Raises `EditRejected` if the keys are not finite.
        """
        return remember_together([self], [keys_nI], weight)[0]

    def forget(self, keys_nI: Tensor, weight: float = 1.0) -> KeyPreconditioner:
        """Return the preconditioner without these keys, which it was given with this weight: a down-date.

        Raises `EditRejected` if rounding has left too little of them.
        """
        before = self.folded() if self.is_long else self
        applied_nI = before.apply(keys_nI)
        system_nn = -weight * (keys_nI.to(applied_nI) @ applied_nI.T)
        system_nn.diagonal().add_(1.0)
        factor_nn = _cholesky(system_nn, "the keys of the edits that these replace are too large to be taken out")
        taken_nI = torch.linalg.solve_triangular(factor_nn, weight**0.5 * applied_nI, upper=False)
        return KeyPreconditioner(before.base_II, before.whitened_mI, torch.cat([before.taken_rI, taken_nI]))

    @property
    def is_long(self) -> bool:
        return 2 * (len(self.whitened_mI) + len(self.taken_rI)) > len(self.base_II)

    def folded(self) -> KeyPreconditioner:
        """Return the same matrix with the past inside `base_II`: beyond I / 2 rows, this form costs less to apply."""
        P_II = self.base_II - self.whitened_mI.T @ self.whitened_mI
        if len(self.taken_rI):
            P_II += self.taken_rI.T @ self.taken_rI
        return KeyPreconditioner.start(0.5 * (P_II + P_II.T))

    def apply(self, keys_nI: Tensor) -> Tensor:
        """Return `K P`, [n, I] in fp64."""
        keys_64 = keys_nI.to(self.base_II)
        product_nI = keys_64 @ self.base_II
        if len(self.whitened_mI):
            product_nI -= (keys_64 @ self.whitened_mI.T) @ self.whitened_mI
        if len(self.taken_rI):
            product_nI += (keys_64 @ self.taken_rI.T) @ self.taken_rI
        return product_nI


def remember_together(
    preconditioners: Sequence[KeyPreconditioner],
    keys: Sequence[Tensor],
    weight: float,
    products: Sequence[Tensor | None] | None = None,
) -> list[KeyPreconditioner]:
    """Return `preconditioners[i].remember(keys[i], weight)` for all i, with one call for all small factorisations.

    All keys have one shape. `products[i]` is `preconditioners[i].apply(keys[i])`, or None where it is not known.
    """
    together = list[KeyPreconditioner]()
    applied = list[Tensor]()
    for before, keys_nI, product_nI in zip(preconditioners, keys, products or [None] * len(keys), strict=True):
        together.append(before.folded() if before.is_long else before)
        applied.append(together[-1].apply(keys_nI) if before.is_long or product_nI is None else product_nI)
    applied_MnI = torch.stack(applied)
    system_Mnn = weight * (torch.stack(list(keys)).to(applied_MnI) @ applied_MnI.mT)
    system_Mnn.diagonal(dim1=1, dim2=2).add_(1.0)
    factor_Mnn = _cholesky(system_Mnn, "the keys of the edits are not finite or too large")
    whitened_MnI = torch.linalg.solve_triangular(factor_Mnn, weight**0.5 * applied_MnI, upper=False)
    return [
        KeyPreconditioner(one.base_II, torch.cat([one.whitened_mI, whitened_nI]), one.taken_rI)
        for one, whitened_nI in zip(together, whitened_MnI, strict=True)
    ]


def base_preconditioner(moment_II: Tensor, strength: float) -> Tensor:
    """Return `(c C + I)⁻¹` in fp64; it is computed once per matrix."""
    moment_II = moment_II.double()
    eye = torch.eye(len(moment_II), dtype=torch.float64, device=moment_II.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(strength * moment_II + eye))


@dataclass(frozen=True)
class KeyGram:
    """The part of a solve that depends on the keys alone, shared by all matrices with this input.

    `V_nI` is in fp32, the Gram matrix `V Kᵀ` and `product_nI` in fp64. `product_nI` is `K P`, which remembering the keys needs
    again; it is None without a preconditioner. `inverses` holds `(gram + λ I)⁻¹` by λ.
    """

    keys_nI: Tensor
    V_nI: Tensor
    gram_nn: Tensor
    product_nI: Tensor | None = None
    inverses: dict[float, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, keys_nI: Tensor, preconditioner: KeyPreconditioner | None = None) -> KeyGram:
        product_nI = preconditioner.apply(keys_nI) if preconditioner else None
        V_nI = keys_nI.double() if product_nI is None else product_nI
        gram_nn = V_nI @ keys_nI.to(V_nI).T
        return cls(keys_nI, V_nI.float(), 0.5 * (gram_nn + gram_nn.T), product_nI)

    def solve(self, wanted_nO: Tensor, log_ridge: Tensor) -> Tensor:
        """Return `Z_nO` in fp32, with gradients to `wanted_nO` and `log_ridge`. Raises `EditRejected` without a solution."""
        return solve_together([self], wanted_nO[None], log_ridge[None])[0]


def solve_together(grams: Sequence[KeyGram], wanted_MnO: Tensor, log_ridge_M: Tensor) -> Tensor:
    """Return `Z_MnO` in fp32, the solution of `grams[m]` for `wanted_MnO[m]`; gradients and errors as `KeyGram.solve`.

    Many small factorisations are one call, which on a GPU takes hardly longer than one of them.
    """
    return _RidgeSolve.apply(inverses(grams, log_ridge_M), wanted_MnO, log_ridge_M)


@torch.no_grad()
def inverses(grams: Sequence[KeyGram], log_ridge_M: Tensor) -> Tensor:
    """Return `(gram + λ I)⁻¹` of each, [M, n, n], and keep them for later solves with the same keys and λ."""
    ridges: list[float] = log_ridge_M.tolist()
    new = [m for m, ridge in enumerate(ridges) if ridge not in grams[m].inverses]
    if new:
        ridged_mnn = torch.stack([grams[m].gram_nn for m in new])
        ridged_mnn.diagonal(dim1=1, dim2=2).add_(log_ridge_M[new].double().exp()[:, None])
        factor_mnn = _cholesky(ridged_mnn, "the ridge is too small for keys so alike, or not finite")
        for m, inverse_nn in zip(new, torch.cholesky_inverse(factor_mnn), strict=True):
            grams[m].inverses[ridges[m]] = inverse_nn
    return torch.stack([grams[m].inverses[ridge] for m, ridge in enumerate(ridges)])


class _RidgeSolve(torch.autograd.Function):
    """`Z = M⁻¹ D`, M = gram + λ I, with analytic gradients: dD = B = M⁻¹ dZ, dlog λ = -λ <B, Z>.

    The explicit inverse, n by n in fp64, is twice as fast as triangular solves with O right-hand sides, whose automatic
    gradient would also go to the keys, which need none.
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
    """Factorise one matrix, or each of [M, n, n]. Raises `EditRejected` if one is not positive definite and finite."""
    factor_nn, info = torch.linalg.cholesky_ex(matrix_nn)
    if not bool((info == 0).all() & torch.isfinite(factor_nn).all()):
        raise EditRejected(f"the update has no solution: {failure}", code=Code.UNSOLVABLE)
    return factor_nn


def ridge_dual(keys_nI: Tensor, wanted_nO: Tensor, log_ridge: Tensor) -> tuple[Tensor, Tensor]:
    """Return (V_nI, Z_nO) of the plain ridge solve; Z carries gradients to `wanted_nO` and `log_ridge`."""
    return keys_nI, KeyGram.of(keys_nI).solve(wanted_nO, log_ridge)
