"""The dual solvers against the formulas of the papers in primal form, in fp64."""

from __future__ import annotations

import pytest
import torch

from errata.edit import EditRejected
from errata.editors.solve import KeyGram, KeyPreconditioner, base_preconditioner, ridge_dual

I, O, N, M = 12, 7, 5, 9  # noqa: E741 in-features, out-features, rows, past rows


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(name="keys_nI")
def make_keys():
    return randn(N, I, seed=1)


@pytest.fixture(name="wanted_nO")
def make_wanted():
    return randn(N, O, seed=2).requires_grad_()


@pytest.fixture
def log_ridge():
    return torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)


@pytest.fixture(name="moment_II")
def make_moment():
    rows = randn(40, I, seed=3)
    return rows.T @ rows / 40


def primal_ridge(keys_nI, wanted_nO, log_ridge):
    """Return Sᵀ with S = (Kᵀ K + λ I)⁻¹ Kᵀ D."""
    S_IO = torch.linalg.solve(keys_nI.T @ keys_nI + log_ridge.exp() * torch.eye(I, dtype=torch.float64), keys_nI.T @ wanted_nO)
    return S_IO.T


def primal_preconditioned(keys_nI, wanted_nO, log_ridge, moment_II, strength, past_mI):
    """Return Sᵀ with S = (Kᵀ K + λ (c C + past + I))⁻¹ Kᵀ D."""
    weight_II = strength * moment_II + past_mI.T @ past_mI + torch.eye(I, dtype=torch.float64)
    return torch.linalg.solve(keys_nI.T @ keys_nI + log_ridge.exp() * weight_II, keys_nI.T @ wanted_nO).T


def check_same(dual, primal, inputs):
    """Check equal values, and equal gradients of a scalar; the dual returns fp32."""
    torch.testing.assert_close(dual.double(), primal, rtol=1e-4, atol=1e-5)
    probe = randn(O, I, seed=9)
    found = torch.autograd.grad((dual.double() * probe).sum(), inputs)
    expected = torch.autograd.grad((primal * probe).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_ridge_dual_is_the_primal_solution(keys_nI, wanted_nO, log_ridge):
    V_nI, Z_nO = ridge_dual(keys_nI, wanted_nO, log_ridge)
    check_same(Z_nO.double().T @ V_nI, primal_ridge(keys_nI, wanted_nO, log_ridge), (wanted_nO, log_ridge))


@pytest.mark.parametrize("steps", [(), (M,), (4, 1, 4)])
def test_the_preconditioned_solve_is_the_primal_solution_for_any_blocks_of_past_keys(
    keys_nI, wanted_nO, log_ridge, moment_II, steps
):
    past_mI = randn(M, I, seed=4)[: sum(steps)]
    preconditioner = KeyPreconditioner.start(base_preconditioner(moment_II, 30.0))
    for part in past_mI.split(steps) if steps else ():
        preconditioner = preconditioner.remember(part)
    gram = KeyGram.of(keys_nI, preconditioner)
    expected = primal_preconditioned(keys_nI, wanted_nO, log_ridge, moment_II, 30.0, past_mI)
    check_same(gram.solve(wanted_nO, log_ridge).double().T @ gram.V_nI.double(), expected, (wanted_nO, log_ridge))


def test_resuming_from_past_keys_gives_the_same_preconditioner(keys_nI, moment_II):
    base_II, past_mI = base_preconditioner(moment_II, 2.0), randn(M, I, seed=4)
    stepwise = KeyPreconditioner.start(base_II).remember(past_mI[:3]).remember(past_mI[3:])
    torch.testing.assert_close(KeyPreconditioner.resume(base_II, past_mI).apply(keys_nI), stepwise.apply(keys_nI))
    expected = keys_nI @ torch.linalg.inv(torch.linalg.inv(base_II) + past_mI.T @ past_mI)
    torch.testing.assert_close(stepwise.apply(keys_nI), expected)


def test_the_weight_scales_past_keys(keys_nI, moment_II):
    base_II, past_mI = base_preconditioner(moment_II, 2.0), randn(M, I, seed=4)
    found = KeyPreconditioner.start(base_II).remember(past_mI[:4], 0.3).remember(past_mI[4:], 0.3).apply(keys_nI)
    torch.testing.assert_close(found, keys_nI @ torch.linalg.inv(torch.linalg.inv(base_II) + 0.3 * past_mI.T @ past_mI))


def test_two_preconditioners_that_grow_from_one_are_independent(keys_nI, moment_II):
    base_II, past_mI = base_preconditioner(moment_II, 2.0), randn(M, I, seed=4)
    common = KeyPreconditioner.start(base_II).remember(past_mI[:3])
    one, other = common.remember(past_mI[3:6]), common.remember(past_mI[6:])
    for preconditioner, rows in ((common, past_mI[:3]), (one, past_mI[:6]), (other, past_mI[[0, 1, 2, 6, 7, 8]])):
        expected = keys_nI @ torch.linalg.inv(torch.linalg.inv(base_II) + rows.T @ rows)
        torch.testing.assert_close(preconditioner.apply(keys_nI), expected)


def test_forgotten_keys_leave_the_preconditioner_of_the_others(keys_nI, moment_II):
    base_II, past_mI = base_preconditioner(moment_II, 2.0), randn(M, I, seed=4)
    found = KeyPreconditioner.start(base_II).remember(past_mI[:4], 0.3).remember(past_mI[4:], 0.3).forget(past_mI[2:6], 0.3)
    others = past_mI[[0, 1, *range(6, M)]]
    expected = torch.linalg.inv(torch.linalg.inv(base_II) + 0.3 * others.T @ others)
    torch.testing.assert_close(found.apply(keys_nI), keys_nI @ expected)
    torch.testing.assert_close(found.folded().apply(keys_nI), keys_nI @ expected)


def test_replacing_a_key_often_loses_no_precision(keys_nI, moment_II):
    base_II, key_1I = base_preconditioner(moment_II, 2.0), 30 * randn(1, I, seed=4)
    found = KeyPreconditioner.start(base_II).remember(key_1I)
    for _ in range(5 * I):  # It is folded several times.
        found = found.forget(key_1I).remember(key_1I)
    torch.testing.assert_close(
        found.apply(keys_nI), KeyPreconditioner.resume(base_II, key_1I).apply(keys_nI), rtol=1e-6, atol=1e-9
    )


def test_repeated_keys_give_no_singular_system(keys_nI, wanted_nO, log_ridge, moment_II):
    """K Kᵀ of repeated rows is singular without a ridge; past keys may repeat, too."""
    same = keys_nI[:1].expand(N, I)
    preconditioner = KeyPreconditioner.start(base_preconditioner(moment_II, 1.0)).remember(same).remember(same)
    for gram in (KeyGram.of(same), KeyGram.of(same, preconditioner)):
        assert torch.isfinite(gram.V_nI).all()
        assert torch.isfinite(gram.solve(wanted_nO, log_ridge)).all()


def test_a_small_ridge_gives_the_wanted_output(keys_nI, wanted_nO):
    V_nI, Z_nO = ridge_dual(keys_nI, wanted_nO, torch.tensor(-25.0))
    torch.testing.assert_close(keys_nI @ V_nI.T @ Z_nO.double(), wanted_nO.detach(), rtol=1e-4, atol=1e-4)


def test_the_preconditioner_protects_used_directions(keys_nI, wanted_nO, log_ridge):
    used_I = randn(I, seed=6)
    moment_II = torch.outer(used_I, used_I)
    preconditioner = KeyPreconditioner.start(base_preconditioner(moment_II, 1000.0))
    plain, spared = KeyGram.of(keys_nI), KeyGram.of(keys_nI, preconditioner)
    moved = [
        float((gram.solve(wanted_nO, log_ridge).detach().double().T @ (gram.V_nI.double() @ used_I)).norm())
        for gram in (plain, spared)
    ]
    assert moved[1] < 0.05 * moved[0]


@pytest.mark.parametrize("log_ridge", [-60.0, float("nan")])
def test_a_solve_without_a_solution_is_refused(log_ridge):
    keys_nI = 1e3 * randn(1, I).expand(N, I)
    with pytest.raises(EditRejected, match="no solution: the ridge"):
        ridge_dual(keys_nI, randn(N, O), torch.tensor(log_ridge, dtype=torch.float64))


def test_keys_that_are_not_finite_are_not_remembered(moment_II):
    with pytest.raises(EditRejected, match="keys of the edits are not finite"):
        KeyPreconditioner.start(base_preconditioner(moment_II, 1.0)).remember(randn(N, I) * float("nan"))


def test_more_past_rows_than_features_are_folded_into_the_base(moment_II):
    base_II = base_preconditioner(moment_II, 2.0)
    blocks = [randn(5, I, seed=seed) for seed in range(8)]
    preconditioner = KeyPreconditioner.start(base_II)
    for block_nI in blocks:
        preconditioner = preconditioner.remember(block_nI)
    past_mI = torch.cat(blocks)
    truth_II = torch.linalg.inv(torch.linalg.inv(base_II) + past_mI.T @ past_mI)
    torch.testing.assert_close(preconditioner.apply(torch.eye(I, dtype=torch.float64)), truth_II)
    assert len(preconditioner.whitened_mI) <= I // 2 + 5 < len(past_mI)
