"""The solver benchmark at tiny sizes: its report, and that both forms compute the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.episode import EpisodeSettings
from benchmarks.measure import Phases
from benchmarks.sharing import WAYS
from benchmarks.solve_forms import FORMS, Case, errors, make_given, truth
from benchmarks.solver import SolverSettings, check_truth, run
from errata.editors.solve import KeyPreconditioner

CASE = Case(key_size=64, out_size=48, num_rows=5)


@pytest.mark.parametrize(("form", "tolerance"), [("primal", 1e-2), ("dual", 1e-5)])
def test_both_forms_have_the_true_gradients(form: str, tolerance: float) -> None:
    given = make_given(CASE)
    assert max(errors(FORMS[form](given, Phases()), truth(given))) < tolerance


def test_the_truth_is_the_primal_in_double_precision() -> None:
    reference = check_truth(seed=1)
    assert reference["error_wanted"] < 1e-9 and reference["error_ridge"] < 1e-7


@pytest.mark.parametrize("in_metric", [False, True])
def test_every_way_of_sharing_keys_solves_the_same(in_metric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    keys_nI, *wanted = (torch.randn(5, size, generator=generator) for size in (64, 48, 48))
    metric = KeyPreconditioner.resume(torch.eye(64, dtype=torch.float64), keys_nI.double().flip(1)) if in_metric else None
    found = {}
    for name, way in WAYS.items():
        leaves = tuple(D_nO.clone().requires_grad_() for D_nO in wanted)
        log_ridges = torch.full((2,), 0.3, requires_grad=True)
        Z = way(keys_nI, metric, leaves, (log_ridges[0], log_ridges[1]))
        sum((Z_nO**2).sum() for Z_nO in Z).backward()
        found[name] = [*Z, *(leaf.grad for leaf in leaves), log_ridges.grad.sum()]
    for name, tensors in found.items():
        torch.testing.assert_close(tensors, found["alone"], msg=name)


def test_the_report_has_ratios_and_small_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    episode = EpisodeSettings(depths=(0, 2), num_batches=3, batch_size=2, num_subjects=20)
    settings = SolverSettings(shapes=((64, 48),), rows=(5, 8), primal_once_from=64, once_rows=8, repeats=2, episode=episode)
    report = json.loads(run(replace(settings, seed=3), "a test").read_text())
    assert {"name": "bench-solver", "command": "a test", "seed": 3}.items() <= report.items()
    assert report["hardware"]["num_cores"] >= 1 and report["hardware"]["torch"]
    assert [(r["key_size"], r["num_rows"], r["primal_ran_at_rows"]) for r in report["rows"]] == [(64, 5, 8), (64, 8, 8)]
    for found in report["rows"]:
        assert found["ratio"] == pytest.approx(found["seconds_primal"] / found["seconds_dual"])
        assert found["error_wanted_dual"] < 1e-5 and found["error_ridge_dual"] < 1e-5
    assert report["reference"]["error_wanted"] < 1e-9
    assert max(found["error_ridge_dual"] for found in report["unlike"]) < 1e-2
    assert {pair["solve"] for pair in report["pairs"]} == {"ridge", "metric"}
    shallow, deep = report["episodes"]
    assert deep["saved_bytes_ours"] < 1.1 * shallow["saved_bytes_ours"] < shallow["saved_bytes_one_graph"]
    assert deep["saved_bytes_one_graph"] > 1.5 * shallow["saved_bytes_one_graph"]
    assert max(shallow["gradient_difference"], deep["gradient_difference"]) < 1e-4
