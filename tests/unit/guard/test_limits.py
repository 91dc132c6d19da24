"""Limits: what warns, what is refused, and what an update past a limit may still do."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditRejected
from errata.guard.limits import Breach, Guard, Limit, Measurements, VersionRefused, check_norms, matrix_norms
from errata.model.matrices import find_matrices

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]

NORMS = dict.fromkeys(MATRICES, 10_000.0)
HEALTHY = Measurements({MATRICES[0]: 0.1}, {MATRICES[0]: 1.01}, True, 1.0, 0.9, 0.95, 1.01, 0.0, 0.02)


def test_a_modest_change_is_published(random_delta):
    assert Guard().check(check_norms(random_delta(0), NORMS)).publish
    verdict = Guard().check(HEALTHY)
    assert (verdict.publish, verdict.breaches, verdict.warnings) == (True, (), ())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_delta_that_is_not_finite_is_refused(value):
    delta = WeightDelta({MATRICES[0]: LowRank(torch.full((4, 1), value), torch.ones(5, 1))})
    (breach,) = Guard().check(check_norms(delta, NORMS)).breaches
    assert breach.code is Code.GUARD_NOT_FINITE


def test_a_matrix_that_changes_too_much_is_named(random_delta):
    delta = random_delta(0)
    norms = {**NORMS, MATRICES[1]: delta.norms()[MATRICES[1]] / 2}
    (breach,) = Guard(change=Limit(1.0, 1.0)).check(check_norms(delta, norms)).breaches
    assert (breach.limit, breach.value, breach.bound) == ("change", 2.0, 1.0) and str(breach).startswith(MATRICES[1])
    assert Guard(change=Limit(1.0, 2.01)).check(check_norms(delta, norms)).publish
    with pytest.raises(EditRejected, match=f"matrices that are not editable: {MATRICES[0]}"):
        check_norms(delta, {})


def test_an_overflowing_norm_is_refused():
    big = WeightDelta({MATRICES[0]: LowRank(torch.full((4, 1), 3e38), torch.full((5, 1), 3e38))})
    assert not Guard().check(check_norms(big, NORMS)).publish


@pytest.mark.parametrize(
    ("field", "warned", "refused", "says"),
    [
        ("ppl_ratio", 1.2, 1.51, "perplexity of other sentences would be {} times"),
        ("lost_retention", 0.2, 0.5, "{:.2f} of the earlier edits would be lost"),
        ("lost_locality", 0.1, 0.25, "{:.2f} of the answers to unrelated questions would change"),
        ("fires", 0.1, 0.25, "a new record would decide at {:.2f} of the unrelated questions and sentences"),
        (
            "decided",
            0.3,
            0.6,
            "records of all versions together would decide at {:.2f} of the unrelated questions and sentences",
        ),
        ("norm_growth", {MATRICES[0]: 30.0}, {MATRICES[0]: 101.0}, MATRICES[0]),
    ],
)
def test_each_limit_warns_and_then_refuses(field, warned, refused, says):
    verdict = Guard().check(replace(HEALTHY, **{field: warned}))
    assert verdict.publish and len(verdict.warnings) == 1 and not verdict.breaches
    verdict = Guard().check(replace(HEALTHY, **{field: refused}))
    assert not verdict.publish and len(verdict.breaches) == 1
    assert says.format(refused) in str(verdict.breaches[0])


def test_unanswered_edits_warn_and_are_refused_only_by_a_limit():
    found = replace(HEALTHY, efficacy=0.25)
    assert Guard().check(found).warnings == ("0.75 of the edits would not be answered with their targets, more than 0",)
    (breach,) = Guard(unanswered=Limit(0.0, 0.5)).check(found).breaches
    assert str(breach) == "0.75 of the edits would not be answered with their targets, more than 0.5"


def test_nan_is_refused_and_a_missing_score_is_not():
    assert not Guard().check(replace(HEALTHY, ppl_ratio=math.nan)).publish
    assert Guard().check(Measurements()).publish


def test_a_limit_that_warns_above_its_refusal_is_an_error():
    with pytest.raises(ValueError, match="2 of a limit must not exceed its refusal level 1"):
        Limit(2.0, 1.0)


def test_scores_are_json_without_infinity():
    found = Measurements({"a": math.inf}, {}, False, failed=({"prompt": "p", "target": "t", "answer": "x"},))
    assert found.to_json() == {
        "relative_norm": {"a": None},
        "norm_growth": {},
        "failed": [{"prompt": "p", "target": "t", "answer": "x"}],
    }


def test_a_refusal_can_be_pickled():
    refusal = VersionRefused(
        (Breach("change", 9.0, 1.0, "too large"), Breach("perplexity", 2.0, 1.5, "too much")), {"efficacy": 0.5}
    )
    again = pickle.loads(pickle.dumps(refusal))
    assert (again.breaches, again.scores, str(again)) == (refusal.breaches, refusal.scores, str(refusal))
    assert again.reason == "the guard refuses it: too large; too much" and again.code is Code.GUARD_PERPLEXITY


@pytest.mark.parametrize(
    ("found", "before", "published"),
    [
        ({"ppl_ratio": 1.7}, {"ppl_ratio": 1.7}, True),
        ({"ppl_ratio": 1.8}, {"ppl_ratio": 1.7}, False),
        ({"ppl_ratio": 1.7}, {}, False),
        ({"locality": 0.4}, {"locality": 0.4}, True),
        ({"locality": 0.4}, {"locality": 0.45}, False),
        ({"broken_sentences": 0.5}, {"broken_sentences": 0.5}, True),
        ({"broken_sentences": 0.5}, {"broken_sentences": 0.4}, False),
    ],
)
def test_a_model_past_a_limit_takes_an_update_without_harm(found, before, published):
    verdict = Guard().check(replace(HEALTHY, **found, before=before))
    assert verdict.publish == published and len(verdict.breaches + verdict.warnings) == 1


def test_cumulative_harm_is_bounded():
    guard = Guard()
    assert guard.check(replace(HEALTHY, locality=0.75, before={"locality": 0.8})).warnings[0].startswith("0.25 of the answers")
    (breach,) = guard.check(replace(HEALTHY, locality=0.45, before={"locality": 0.5})).breaches
    assert breach.limit == "drift"


def test_small_steps_beyond_a_limit_are_bounded():
    guard, ratio, largest = Guard(), 1.5, 0.0
    for _ in range(3000):
        if guard.check(replace(HEALTHY, ppl_ratio=ratio * 1.00099, before={"ppl_ratio": ratio})).publish:
            ratio = largest = ratio * 1.00099
    assert largest == pytest.approx(2 * guard.perplexity.refuse, rel=2e-3)


def test_matrix_norms_are_frobenius_norms(tiny_model):
    norms = matrix_norms(tiny_model, find_matrices(tiny_model.module, MATRICES))
    weight = tiny_model.module.get_submodule(MATRICES[0]).weight
    assert norms[MATRICES[0]] == pytest.approx(float(weight.square().sum().sqrt()), rel=1e-5)
