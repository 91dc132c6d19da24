"""The solve of a hypernetwork editor and its gradients in two forms: the public primal and our dual.

n rows, T = 4 n tokens of the losses, I in-features (key size), O out-features. Keys `K_nI` and wanted changes `D_nO` give the
change S of a matrix. A loss, here `<G_TO, X_TI S>`, gives gradients by D and by log λ.

* primal, as MALMEN and RLEdit publish it, fp32:  S = (KᵀK + λI)⁻¹ KᵀD;  Γ = XᵀG dense;  a second solve A⁻¹Γ of I by I;
  dD = K A⁻¹Γ,  dlog λ = -λ <A⁻¹Γ, S>
* dual, ours (errata.editors.solve):  Z = (KKᵀ + λI)⁻¹ D in fp64, n by n;  the model runs with (x Kᵀ) Z beside it, so the
  gradient arrives at Z_nO and neither S nor Γ exists;  automatic differentiation continues to D and log λ

The solve is everything from (K, D) to S or Z, and from Γ or dZ to (dD, dlog λ). The branch is counted separately: what each
form adds to the model's own passes. Primal: W += S and Γ = XᵀG. Dual: (X Kᵀ) Z, and its gradients by Z and by X.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import Phases
from errata.delta.parts import LowRank
from errata.editors.solve import ridge_dual


@dataclass(frozen=True)
class Case:
    """One matrix and number of rows. λ is the published initial value."""

    key_size: int
    out_size: int
    num_rows: int
    seed: int = 0
    ridge: float = 1.0


@dataclass(frozen=True)
class Given:
    """Input of both forms."""

    K_nI: Tensor
    D_nO: Tensor
    X_TI: Tensor
    G_TO: Tensor
    weight_OI: Tensor
    ridge: float


@dataclass(frozen=True)
class Gradients:
    """Gradients by the wanted changes and by log λ."""

    wanted_nO: Tensor
    log_ridge: float


def make_given(case: Case) -> Given:
    """Generate input. Keys share a direction, as a model's do.

    Half of the tokens are rephrasings: the keys twice with noise, whose loss agrees with the edits. The other half is
    unrelated, with a gradient of its own.
    """
    generator = torch.Generator().manual_seed(case.seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    common_I = 3 * randn(case.key_size)
    K_nI = randn(case.num_rows, case.key_size).add_(common_I)
    D_nO = randn(case.num_rows, case.out_size)
    rephrasings = slice(2 * case.num_rows)
    X_TI, G_TO = randn(4 * case.num_rows, case.key_size), randn(4 * case.num_rows, case.out_size)
    X_TI[rephrasings] += K_nI.repeat(2, 1)
    X_TI[2 * case.num_rows :] += common_I
    G_TO[rephrasings] += D_nO.repeat(2, 1)
    return Given(K_nI, D_nO, X_TI, G_TO, torch.zeros(case.out_size, case.key_size), case.ridge)


def primal(given: Given, phase: Phases) -> Gradients:
    """Run the public form."""

    def ridged_II() -> Tensor:
        A_II = given.K_nI.T @ given.K_nI
        A_II.diagonal().add_(given.ridge)
        return A_II

    with phase("forward"):
        S_IO = torch.linalg.solve(ridged_II(), given.K_nI.T @ given.D_nO)
    with phase("branch"):
        given.weight_OI.add_(S_IO.T)
        gamma_IO = given.X_TI.T @ given.G_TO
    with phase("backward"):
        solved_IO = torch.linalg.solve(ridged_II(), gamma_IO)
        overlap = torch.dot(solved_IO.T.reshape(-1), S_IO.T.reshape(-1))  # LAPACK returns columns contiguously
        return Gradients(given.K_nI @ solved_IO, -given.ridge * float(overlap))


def dual(given: Given, phase: Phases) -> Gradients:
    """Run our form."""
    D_nO = given.D_nO.detach().requires_grad_()
    log_ridge = torch.tensor(given.ridge).log().requires_grad_()
    X_TI = given.X_TI.detach().requires_grad_()  # earlier layers are edited too, so the gradient continues through X
    with phase("forward"):
        V_nI, Z_nO = ridge_dual(given.K_nI, D_nO, log_ridge)
    with phase("branch"):
        leaf_nO = Z_nO.detach().requires_grad_()
        LowRank(leaf_nO.T, V_nI.T).side_branch(X_TI).backward(given.G_TO)
    with phase("backward"):
        Z_nO.backward(leaf_nO.grad)
    assert D_nO.grad is not None and log_ridge.grad is not None
    return Gradients(D_nO.grad, float(log_ridge.grad))


FORMS: dict[str, Callable[[Given, Phases], Gradients]] = {"primal": primal, "dual": dual}


def truth(given: Given) -> Gradients:
    """Compute both gradients in fp64 by the dual's formulas and an LU solve: dD = B = M⁻¹ K Γ, dlog λ = -λ <B, Z>."""
    K_nI, X_TI = given.K_nI.double(), given.X_TI.double()
    M_nn = K_nI @ K_nI.T
    M_nn.diagonal().add_(given.ridge)
    B_nO = torch.linalg.solve(M_nn, (K_nI @ X_TI.T) @ given.G_TO.double())
    Z_nO = torch.linalg.solve(M_nn, given.D_nO.double())
    return Gradients(B_nO, float(-given.ridge * (B_nO * Z_nO).sum()))


def errors(found: Gradients, true: Gradients) -> tuple[float, float]:
    """Relative errors of the gradients by D (Frobenius norm) and by log λ."""
    wanted = float((found.wanted_nO.double() - true.wanted_nO).norm() / true.wanted_nO.norm())
    return wanted, abs(found.log_ridge - true.log_ridge) / abs(true.log_ridge)
