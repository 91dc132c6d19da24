"""One training step of a hypernetwork editor's solve: the public primal form against our dual, `make bench-solver`.

The solve is everything from (K, D) to S or Z, and from Γ or dZ to (dD, dlog λ); solve_forms.py has the equations. The branch is
counted separately: what each form adds to the model's own passes. Primal: W += S and Γ = XᵀG. Dual: (X Kᵀ) Z, and its gradients
by Z and by X.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.episode import EpisodeSettings, measure_episodes
from benchmarks.measure import Phases, in_fresh_process
from benchmarks.report import console, show, write_report
from benchmarks.sharing import measure_pair
from benchmarks.solve_forms import FORMS, Case, Given, errors, make_given, primal, truth
from errata.hardware import PeakMemory, hardware


@dataclass(frozen=True)
class SolverSettings:
    """Rows for every matrix (I, O) of `shapes`. From key size `primal_once_from`, the primal runs only at `once_rows`."""

    shapes: tuple[tuple[int, int], ...] = ((4096, 14336), (14336, 4096))
    rows: tuple[int, ...] = (20, 100, 400)
    primal_once_from: int = 14336
    once_rows: int = 100
    repeats: int = 5
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)
    seed: int = 0


def measure(form: str, case: Case, repeats: int) -> dict[str, Any]:
    """Median seconds of each phase, peak memory of one whole step, and errors. With `repeats` 0 the first run is timed."""
    run = FORMS[form]
    run(make_given(Case(64, 64, 8)), Phases())  # starts libraries and threads
    given, phase = make_given(case), Phases()
    with PeakMemory() as peak:
        gradients = run(given, phase)
    if repeats:
        phase = Phases()
        for _ in range(repeats):
            run(given, phase)
    error_wanted, error_ridge = errors(gradients, truth(given))
    return {**phase.medians(), "peak_bytes": peak.num_bytes, "error_wanted": error_wanted, "error_ridge": error_ridge}


def measure_unlike(case: Case) -> dict[str, Any]:
    """Errors for a loss that is unrelated to the edits: Γ dense and random, one token per direction."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    gamma_IO = torch.randn(case.key_size, case.out_size, generator=generator)
    given = replace(make_given(case), X_TI=torch.eye(case.key_size), G_TO=gamma_IO)
    true = truth(given)
    found = {form: errors(run(given, Phases()), true) for form, run in FORMS.items()}
    return {"key_size": case.key_size, "out_size": case.out_size, "num_rows": case.num_rows} | {
        f"error_{what}_{form}": found[form][i] for i, what in enumerate(("wanted", "ridge")) for form in FORMS
    }


def live_bytes(form: str, case: Case) -> int:
    """Count the tensors that exist together at the widest point of the solve, on paper, without workspaces and inputs.

    Primal, in the backward solve: A and its LU, S, Γ and A⁻¹Γ. Dual, in the backward: the Gram matrix, ridged, its factor and
    their gradients; D, Z and their gradients in fp64; Z and its gradient in fp32.
    """
    I, O, n = case.key_size, case.out_size, case.num_rows  # noqa: E741
    return 4 * (2 * I * I + 3 * I * O) if form == "primal" else 8 * (5 * n * n + 4 * n * O) + 4 * 2 * n * O


def row(case: Case, ours: Mapping[str, float], public: Mapping[str, float], public_at: int) -> dict[str, Any]:
    """Build a line of the table. From a primal that ran with other rows, only what does not depend on them is taken."""
    reused = public_at != case.num_rows
    primal_s, dual_s = public["forward"] + public["backward"], ours["forward"] + ours["backward"]
    with_branch = None if reused else (primal_s + public["branch"]) / (dual_s + ours["branch"])
    return {
        "key_size": case.key_size,
        "num_rows": case.num_rows,
        "primal_ran_at_rows": public_at,
        "seconds_primal": primal_s,
        "seconds_dual": dual_s,
        "ratio": primal_s / dual_s,
        "forward_s_primal": public["forward"],
        "forward_s_dual": ours["forward"],
        "backward_s_primal": public["backward"],
        "backward_s_dual": ours["backward"],
        "branch_s_primal": None if reused else public["branch"],
        "branch_s_dual": ours["branch"],
        "ratio_with_branch": with_branch,
        "peak_bytes_primal": None if reused else int(public["peak_bytes"]),
        "peak_bytes_dual": int(ours["peak_bytes"]),
        "live_bytes_primal": live_bytes("primal", case),
        "live_bytes_dual": live_bytes("dual", case),
        "error_wanted_primal": None if reused else public["error_wanted"],
        "error_wanted_dual": ours["error_wanted"],
        "error_ridge_primal": None if reused else public["error_ridge"],
        "error_ridge_dual": ours["error_ridge"],
    }


def measure_shape(shape: tuple[int, int], settings: SolverSettings) -> list[dict[str, Any]]:
    """Measure the rows of one matrix, every measurement in a fresh process."""
    once = shape[0] >= settings.primal_once_from
    cases = [Case(*shape, num_rows, settings.seed) for num_rows in settings.rows]
    public: dict[int, dict[str, float]] = {}
    for case in cases:
        if not once or case.num_rows == settings.once_rows:
            console().print(f"primal, key size {case.key_size}, {case.num_rows} rows ...", highlight=False)
            public[case.num_rows] = in_fresh_process(measure, "primal", case, 0)
    found = []
    for case in cases:
        ours = in_fresh_process(measure, "dual", case, settings.repeats)
        public_at = settings.once_rows if once else case.num_rows
        found.append(row(case, ours, public[public_at], public_at))
    return found


def check_truth(seed: int) -> dict[str, float]:
    """Difference between the reference and the primal formulas in fp64 at key size 1024: rounding only."""
    given = make_given(Case(1024, 512, 60, seed))
    doubled = {name: value.double() for name, value in vars(given).items() if isinstance(value, Tensor)}
    wanted, ridge = errors(primal(Given(**doubled, ridge=given.ridge), Phases()), truth(given))
    return {"key_size": 1024, "num_rows": 60, "error_wanted": wanted, "error_ridge": ridge}


def run(settings: SolverSettings, command: str) -> Path:
    """Measure, print and write `$ERRATA_HOME/bench-solver/report.json`."""
    machine = hardware()
    about = {"command": command, "seed": settings.seed, "hardware": machine}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    reference = check_truth(settings.seed)
    rows = [found for shape in settings.shapes for found in measure_shape(shape, settings)]
    for title, columns, note in TABLES:
        show(title, [{name: found[name] for name in ("key_size", "num_rows", *columns.split())} for found in rows], note)
    wide = min(settings.shapes)
    unlike = [measure_unlike(Case(wide[0], min(512, wide[1]), n, settings.seed)) for n in settings.rows]
    show("The same for a loss unrelated to the edits: a dense random gradient", unlike, UNLIKE_NOTE)
    pairs = [pair for n in settings.rows for pair in measure_pair(*wide, n, settings.repeats, settings.seed)]
    show("Gate and up of one layer, forward and backward, seconds", pairs, PAIR_NOTE)
    episodes = measure_episodes(replace(settings.episode, seed=settings.seed))
    show("An episode by backtracking depth: peak bytes of graphs", episodes, EPISODE_NOTE)
    return write_report("bench-solver", rows, **about, reference=reference, unlike=unlike, pairs=pairs, episodes=episodes)


TABLES = [
    (
        "One step of the solve, forward and backward: the public primal form (fp32, I by I) and ours (dual, fp64, n by n)",
        "primal_ran_at_rows seconds_primal seconds_dual ratio forward_s_primal forward_s_dual backward_s_primal "
        "backward_s_dual",
        "The primal's time is that of I-by-I solves and hardly depends on the rows: if it ran with other rows (by default at\n"
        "key size 14336; FULL=1 runs all) that time is reused. Primal run once, dual the median of several runs.",
    ),
    (
        "The same with the cost for the model's own passes, on 4 tokens a row",
        "branch_s_primal branch_s_dual ratio_with_branch peak_bytes_primal peak_bytes_dual live_bytes_primal live_bytes_dual",
        "branch: W += S and XᵀG, against (X Kᵀ) Z and its gradients by Z and X. peak: resident high-water of the whole step,\n"
        "branch included, in a fresh process, above its inputs. live: tensors of the solve alone, on paper.",
    ),
    (
        "Relative error of the gradients against fp64",
        "error_wanted_primal error_wanted_dual error_ridge_primal error_ridge_dual",
        "Reference: the dual's formulas in fp64 at full size; they agree with the primal in fp64 at key size 1024 (report).",
    ),
]
UNLIKE_NOTE = (
    "The ridge's gradient is then small, and the primal's the rounding of what should cancel: Γ outside the keys' span."
)
PAIR_NOTE = (
    "alone: each matrix has its own Gram matrix. gram shared: one K Kᵀ, with a preconditioner also one K P; a factor each.\n"
    "all shared: one ridge, so one factor too. by hand: one Gram, products with M⁻¹, and the backward written out."
)
EPISODE_NOTE = (
    "ours: each loss is back-propagated to the updates immediately. one graph: one backward pass at the episode's end."
)


def main() -> None:
    parser = argparse.ArgumentParser(description="The public primal solve against our dual.")
    parser.add_argument("--seed", type=int, default=0)
    seed, full = parser.parse_args().seed, os.environ.get("FULL", "") not in ("", "0")
    settings = SolverSettings(seed=seed)
    if full:
        settings = replace(settings, primal_once_from=max(i for i, _ in settings.shapes) + 1)
    run(settings, f"{'FULL=1 ' if full else ''}make bench-solver ARGS=--seed={seed}")


if __name__ == "__main__":
    main()
