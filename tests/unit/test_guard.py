from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.delta import LowRank, WeightDelta
from errata.evaluate import Scorecard
from errata.guard import Guard, matrix_norms
from errata.model import find_matrices

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]

NORMS = dict.fromkeys(MATRICES, 10_000.0)
CARD = Scorecard(0.5, None, 0.8, None, None, None, 2, "free")


def test_a_modest_change_is_published(random_delta):
    verdict = Guard().check(random_delta(0), NORMS, CARD)
    assert verdict.publish
    assert verdict.reasons == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    delta = WeightDelta({MATRICES[0]: LowRank(torch.full((4, 1), value), torch.ones(5, 1))})
    assert Guard().check(delta, NORMS).reasons == ("the change is not finite",)


def test_growth_over_the_bound_is_refused_by_name(random_delta):
    delta = random_delta(0)
    norms = {**NORMS, MATRICES[1]: delta.norms()[MATRICES[1]] / 2}
    (reason,) = Guard(max_relative_norm=1.0).check(delta, norms).reasons
    assert reason.startswith(MATRICES[1])
    assert Guard(max_relative_norm=2.01).check(delta, norms).publish
    assert not Guard().check(delta, {}).publish


def test_an_overflowing_norm_is_refused():
    big = WeightDelta({MATRICES[0]: LowRank(torch.full((4, 1), 3e38), torch.full((5, 1), 3e38))})
    assert not Guard().check(big, NORMS).publish


def test_low_shares_are_refused_and_unmeasured_ones_are_not(random_delta):
    guard = Guard(min_batch_efficacy=0.6, min_locality=0.9)
    assert guard.check(random_delta(0), NORMS, CARD).reasons == (
        "efficacy is 0.50, less than 0.6",
        "locality is 0.80, less than 0.9",
    )
    assert guard.check(random_delta(0), NORMS, replace(CARD, efficacy=None, locality=None)).publish
    assert guard.check(random_delta(0), NORMS).publish


def test_matrix_norms(tiny_model):
    norms = matrix_norms(tiny_model, find_matrices(tiny_model.module, MATRICES))
    weight = tiny_model.module.get_submodule(MATRICES[0]).weight
    assert norms[MATRICES[0]] == pytest.approx(float(weight.square().sum().sqrt()), rel=1e-5)
