"""Plots of a sweep: a heat map of discount and regularisation, and the importance of each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errata.durable import replaced

DISCOUNT, PENALTY = "editor.reward.discount", "editor.reward.update_penalty"


def draw(trials: Sequence[Mapping[str, Any]], space: Mapping[str, Any], directory: Path) -> dict[str, float]:
    """Write the plots for which there are enough trials; returns the importances, largest first."""
    if DISCOUNT in space and PENALTY in space:
        _heatmap(trials, directory / "heatmap.png")
    importances = importances_of(trials, space)
    if importances:
        _bars(importances, directory / "importances.png")
    return importances


def importances_of(trials: Sequence[Mapping[str, Any]], space: Mapping[str, Any]) -> dict[str, float]:
    """Share of the scores' variance that each setting explains (fANOVA over a random forest); empty below four trials."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    if len(trials) < 4 or len({trial["score"] for trial in trials}) < 2:
        return {}
    distributions = OptunaSearch.convert_search_space(dict(space))
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        params = {name: trial["settings"][name] for name in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial["score"]))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _heatmap(trials: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the trials as points over their mean, weighted by a Gaussian of the distance on the plot."""
    import matplotlib.pyplot as plt

    x = np.array([trial["settings"][DISCOUNT] for trial in trials])
    y = np.log10([trial["settings"][PENALTY] for trial in trials])
    score = np.array([trial["score"] for trial in trials])
    grid_x, grid_y = np.meshgrid(np.linspace(x.min(), x.max() + 1e-9, 80), np.linspace(y.min(), y.max() + 1e-9, 80))
    spread = [max(float(np.ptp(values)), 1e-9) for values in (x, y)]
    distance = ((grid_x[..., None] - x) / spread[0]) ** 2 + ((grid_y[..., None] - y) / spread[1]) ** 2
    weight = np.exp(-distance / (2 * 0.12**2)) + 1e-12
    figure, axes = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
    low, high = score.min(), score.max() + 1e-9
    mesh = axes.pcolormesh(grid_x, grid_y, (weight * score).sum(-1) / weight.sum(-1), vmin=low, vmax=high, shading="auto")
    axes.scatter(x, y, c=score, vmin=low, vmax=high, edgecolors="white", s=60)
    axes.set_xlabel("reward discount γ")
    axes.set_ylabel("log10 of regularisation η")
    axes.set_title(f"lifelong score on the validation stream, {len(trials)} trials")
    figure.colorbar(mesh, label="harmonic mean of efficacy, generalisation, locality")
    with replaced(path) as file:
        figure.savefig(file, format="png", dpi=130)
    plt.close(figure)


def _bars(importances: Mapping[str, float], path: Path) -> None:
    import matplotlib.pyplot as plt

    rising = sorted(importances.items(), key=lambda pair: pair[1])
    names = [name.removeprefix("editor.").removeprefix("reward.") for name, _ in rising]
    figure, axes = plt.subplots(figsize=(6.4, 0.4 * len(names) + 1.2), layout="constrained")
    axes.barh(names, [share for _, share in rising])
    axes.set_xlabel("share of the score's variance (fANOVA)")
    with replaced(path) as file:
        figure.savefig(file, format="png", dpi=130)
    plt.close(figure)
