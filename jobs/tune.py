"""Sweep a plan's settings: `ray job submit --working-dir . -- python jobs/tune.py plan=demo trials=16 field=value`.

Optuna's TPE proposes settings and ASHA stops trials that fall behind. Each trial is a short Ray Train run, scored at its
checkpoints by the harmonic mean of efficacy, generalisation and locality at the end of a validation stream; the best of the
completed trials wins. All data belong to the corpus' train half, and trials are cross-fitted: a trial's key preconditioner
excludes the facts that it is trained and scored on, as in use. An interrupted sweep continues when the same command is given
again. Other arguments: `concurrent` trials, `validation` edits (100, or all of a smaller corpus), `sweep=discount,memory`.
Writes trials.json, best.json (for `jobs/train.py plan=…/best.json`), heatmap.png and importances.png to `found/`; with
`mlflow=URI` to MLflow, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from errata.benchmark import run as benchmark
from errata.benchmark.run import BenchmarkedEditor
from errata.benchmark.stream import BenchmarkStream
from errata.datasets.reader import read_edits, write_parquet
from errata.durable import write_text
from errata.edit import Edit
from errata.editors.editor import Editor
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.net import NETWORKS
from errata.editors.memory_based.recipe import RECIPE
from errata.editors.memory_based.serac import SERAC
from errata.editors.trained_editor import TrainedEditor
from errata.home import home
from errata.model.language_model import LanguageModel
from errata.overrides import with_fields
from errata.registry import Registry, TrainingRun
from errata.testbed.corpus import FOLDS
from errata.testbed.world_facts import WorldFacts
from jobs import train, training_data
from jobs.arguments import check_model, from_arguments, with_checkpoint
from jobs.entry import run_job
from jobs.mlflow_run import log_run, made_from
from jobs.plan import Plan
from jobs.plan_json import write_plan
from jobs.sweep_plots import draw
from jobs.workers import TrainingGivenUp, run_on_workers, start_ray, time_left

NETWORK = "editor.network"
SPACE: dict[str, Any] = {
    "editor.reward.discount": ray.tune.uniform(0.7, 1.0),  # gamma
    "editor.reward.backtrack_decay": ray.tune.uniform(0.5, 1.0),  # mu
    "editor.reward.backtrack_depth": ray.tune.randint(0, 5),  # k
    "editor.reward.update_penalty": ray.tune.loguniform(1e-6, 1e-2),  # eta
    "editor.reward.locality_weight": ray.tune.loguniform(1.0, 30.0),
    "editor.learning_rate": ray.tune.loguniform(5e-4, 1e-2),
    "editor.first_step": ray.tune.uniform(0.2, 0.8),
    "editor.metric_strength": ray.tune.loguniform(1e2, 1e5),
    "editor.memory": ray.tune.loguniform(0.1, 10.0),
    NETWORK: ray.tune.choice(list(NETWORKS)),
}
RATE = {"editor.learning_rate": ray.tune.loguniform(1e-3, 3e-2)}
SPACES: dict[type[TrainedEditor[Any]], dict[str, Any]] = {  # The settings that are swept, by editor.
    HypernetworkEditor: SPACE,
    RECIPE: RATE | {"editor.num_vectors": ray.tune.randint(1, 6), "editor.margin": ray.tune.uniform(1.05, 2.0)},
    SERAC: RATE | {"editor.first_scale": ray.tune.uniform(5.0, 30.0), "editor.first_cosine": ray.tune.uniform(0.4, 0.9)},
}
SCORE = "score"
VALIDATION = 100  # edits on which a trial is scored


@dataclass(frozen=True)
class Sweep:
    """Sweep over some fields of a plan: number of trials, and of validation edits that score each."""

    plan: Plan
    trials: int = 16
    concurrent: int = 2
    validation: int = VALIDATION
    fields: tuple[str, ...] = tuple(SPACE)

    @property
    def space(self) -> dict[str, Any]:
        """The distribution of each swept setting."""
        return {field: space_of(self.plan)[field] for field in self.fields}

    @property
    def directory(self) -> Path:
        """Folder of the sweep; its name hashes everything that must not change when the sweep continues."""
        what = [self.plan.digest(), self.plan.checkpoint_every, self.trials, self.validation, self.fields]
        return home() / "tune" / f"{self.plan.name}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]}"

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def crossed(self) -> Plan:
        """Plan of the trials: validation edits belong to the second fold, the key preconditioner to the first."""
        return replace(self.plan, cross_fit=True, metric_part=FOLDS[0])


def from_command_line(arguments: Sequence[str]) -> Sweep:
    """Read a sweep from `plan=NAME trials=16 field=value ...`. Raises `ValueError` that names a wrong argument."""
    own = {"trials": 16, "concurrent": 2, "validation": VALIDATION}
    found = {name: value for name, sign, value in (a.partition("=") for a in arguments) if sign and name in (*own, "sweep")}
    rest = [argument for argument in arguments if argument.partition("=")[0] not in found]
    if wrong := [f"{name}={value}" for name, value in found.items() if name in own and not value.isdigit()]:
        raise ValueError(f"a whole number is needed: {', '.join(wrong)}")
    numbers = own | {name: int(value) for name, value in found.items() if name in own}
    if wrong := [name for name, value in numbers.items() if value < 1]:
        raise ValueError(f"must be at least 1: {', '.join(wrong)}")
    plan = from_arguments([*(["num_workers=1"] if not any(a.startswith("num_workers=") for a in rest) else []), *rest])
    fields = tuple(space_of(plan))
    if "sweep" in found:
        short = {name.rpartition(".")[2]: name for name in fields}
        if unknown := [name for name in found["sweep"].split(",") if name not in short]:
            raise ValueError(f"no swept setting is named {', '.join(unknown)}; there are {', '.join(short)}")
        fields = tuple(short[name] for name in found["sweep"].split(","))
    if plan.edits or plan.text:
        raise ValueError("a sweep is scored on validation edits of the plan's corpus: leave edits= and text= out")
    if plan.model and not isinstance(plan.corpus, WorldFacts):
        raise ValueError(
            f"{plan.model} has not learned the invented facts of the plan's corpus: leave model= out, or plan=smollm2"
        )
    check_model(plan, plan.editor.modules)
    train.check(plan)
    if plan.min_workers:
        raise ValueError("trials share the cluster, each with its num_workers: leave min_workers= out")
    if plan.schedule.train_steps < plan.checkpoint_every:
        raise ValueError(
            f"trials are scored every checkpoint_every={plan.checkpoint_every} steps, and these have "
            f"{plan.schedule.train_steps}: lower it, or raise schedule.train_steps"
        )
    numbers["validation"] = _validation(plan, int(found["validation"]) if "validation" in found else None)
    plan.check_gpus()
    return Sweep(plan, fields=fields, **numbers)


def space_of(plan: Plan) -> dict[str, Any]:
    """Return the settings of the plan's editor that a sweep may vary, with the distribution of each."""
    return next(space for kind, space in SPACES.items() if isinstance(plan.editor, kind))


def _validation(plan: Plan, wanted: int | None) -> int:
    """Return the number of validation edits: as given, or `VALIDATION`, or all that the plan's corpus has if it has fewer.

    Raises `ValueError` if more are given than the corpus has.
    """
    there = sum(1 for _ in plan.corpus.stream("validation", plan.seed))
    if wanted is None:
        return min(VALIDATION, there)
    if wanted > there:
        size = getattr(plan.corpus, "num_subjects", 0)
        larger = f", or a larger world, corpus.num_subjects={size * (wanted // there + 2)}" if size else ""
        raise ValueError(
            f"plan {plan.name}'s corpus has {there} validation edits, fewer than {wanted}: give validation={there}{larger}"
        )
    return wanted


def lifelong_score(model: LanguageModel, editor: Editor, stream: BenchmarkStream) -> dict[str, float]:
    """Score an editor at the end of a stream by free generation; the model's weights are restored."""
    row = benchmark.run(model, BenchmarkedEditor(type(editor).__name__, editor), stream)[-1]
    shares = {name: row[name] or 0.0 for name in ("efficacy", "generalisation", "locality")}
    return {SCORE: row["harmonic_mean"] or 0.0, **shares}


def work(config: dict[str, Any]) -> None:
    """Train a trial in one Ray Train worker, scored at every checkpoint."""
    plan: Plan = config["plan"]
    edits = validation_edits(plan, config["validation"])
    sentences = plan.corpus.plain_sentences(held_out=True)
    stream = BenchmarkStream(tuple(edits), tuple(sentences), plan.schedule.batch_size, checkpoints=(), seed=plan.seed)

    def score(model: LanguageModel, editor: Editor) -> dict[str, float]:
        return lifelong_score(model, editor, stream)

    train.work({**config, "score": score, "keep": False})


def validation_edits(plan: Plan, count: int) -> list[Edit]:
    """Return the edits that score a trial: of facts of the world, such as the model gets wrong."""
    if not isinstance(plan.corpus, WorldFacts):
        return list(plan.corpus.edits("validation", count, plan.seed))
    return list(islice(read_edits(training_data.edits_file(plan, "validation")), count))


def trial(settings: dict[str, Any], sweep: Sweep) -> None:
    """Run one trial. Its Train run is named after it, so that an interrupted trial resumes from its checkpoint."""
    name = f"{sweep.name}-{ray.tune.get_context().get_trial_id()}"
    plan = with_fields(sweep.crossed, settings)
    config = {"validation": sweep.validation}
    run_on_workers(work, plan, name, config, [TuneReportCallback()], share=1.0 / sweep.concurrent)


class Progress(ray.tune.Callback):
    """Progress lines for each report and end of a trial. Pickled with the sweep, so that it counts trials of earlier runs."""

    def __init__(self, trials: int) -> None:
        self.trials, self.started, self.ended, self.best = trials, time.monotonic(), 0, 0.0

    def setup(self, *what: Any, **info: Any) -> None:
        self.started, self.ended = time.monotonic(), 0

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.best = max(self.best, result.get(SCORE, 0.0))
        print(
            f"tune: {trial.trial_id} at train_step {result.get('train_step', 0)}: score {result.get(SCORE, 0.0):.3f}"
            f" (best {self.best:.3f})",
            flush=True,
        )

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.ended += 1
        done = sum(each.is_finished() or each is trial for each in trials)
        left = time_left(self.started, self.ended, self.ended + self.trials - done)
        print(f"tune: {done}/{self.trials} trials ended, {left}", flush=True)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)


def run(sweep: Sweep) -> None:
    """Run the sweep, or continue it, and report the best settings."""
    sweep = replace(sweep, plan=with_checkpoint(sweep.plan, sweep.plan.editor.modules))
    train.prepare(sweep.crossed)
    validation = Path(training_data.edits_file(sweep.plan, "validation"))
    if isinstance(sweep.plan.corpus, WorldFacts) and not validation.exists():
        write_parquet(training_data.edits_of(sweep.plan, "validation"), validation)
    start_ray()
    storage, name = sweep.plan.storage_for("tune"), sweep.name
    # A trial's driver only waits. With a whole CPU for each driver, none would be left for the Train runs.
    trainable = ray.tune.with_resources(ray.tune.with_parameters(trial, sweep=sweep), {"CPU": 0.01})
    if ray.tune.Tuner.can_restore(f"{storage}/{name}"):
        print(f"tune: continuing {sweep.directory}", flush=True)
        tuner = ray.tune.Tuner.restore(f"{storage}/{name}", trainable=trainable, resume_errored=True)
    else:
        points = first_points(sweep)
        search = OptunaSearch(
            metric=SCORE, mode="max", sampler=_sampler(sweep.plan.seed), points_to_evaluate=points if points else None
        )
        steps = sweep.plan.schedule.train_steps
        tuner = ray.tune.Tuner(
            trainable,
            param_space=sweep.space,
            tune_config=ray.tune.TuneConfig(
                search_alg=ConcurrencyLimiter(search, max_concurrent=sweep.concurrent),
                scheduler=ASHAScheduler(
                    time_attr="train_step",
                    metric=SCORE,
                    mode="max",
                    max_t=steps + 1,
                    grace_period=sweep.plan.checkpoint_every,
                    reduction_factor=2,
                ),
                num_samples=sweep.trials,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(name=name, storage_path=storage, verbose=0, callbacks=[Progress(sweep.trials)]),
        )
    report(sweep, tuner.fit())


def first_points(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the first trials: the plan's own settings, within the bounds of the sweep, with each kind of network.

    So the identity, which trains a step and a ridge alone, is a candidate of every sweep of the network.
    """
    if NETWORK not in sweep.fields:
        return []
    own = {field: _within(sweep.space[field], _value(sweep.plan, field)) for field in sweep.fields if field != NETWORK}
    return [{**own, NETWORK: network} for network in ("identity", "full", "residual")]


def _value(plan: Plan, field: str) -> Any:
    return reduce(getattr, field.split("."), plan)


def _within(domain: Any, value: float) -> float:
    """Return the value of a domain that is nearest to another; the upper bound of whole numbers is none of them."""
    last = domain.upper - 1 if isinstance(domain, ray.tune.search.sample.Integer) else domain.upper
    return min(max(value, domain.lower), last)


def _sampler(seed: int) -> Any:
    import optuna

    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=6, multivariate=True)


def report(sweep: Sweep, results: Any) -> None:
    """Write the sweep's results to files, the terminal and MLflow."""
    trials: list[dict[str, Any]] = []
    for result in results:
        curve = result.metrics_dataframe
        points = [] if curve is None or SCORE not in curve else curve[["train_step", SCORE]].dropna().values.tolist()
        trials.append({"settings": dict(result.config or {}), "curve": points, "score": points[-1][1] if points else None})
    # Longest first: trials that ASHA stopped are trained less, so their scores do not predict a complete training.
    scored = sorted((t for t in trials if t["curve"]), key=lambda t: (-t["curve"][-1][0], -t["score"]))
    if not scored:
        errors = f"{sweep.plan.storage_for('tune')}/{sweep.name}"
        raise TrainingGivenUp(f"no trial of {sweep.name} reached a score; Ray Tune's folder has their errors: {errors}")
    directory = sweep.directory / "found"
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "trials.json", json.dumps({"fields": sweep.fields, "trials": trials}, indent=1))
    # A memory measures nothing on texts, so that it needs no other fold than that of its edits.
    crossed = isinstance(sweep.plan.editor, HypernetworkEditor) or sweep.plan.cross_fit
    best = replace(with_fields(sweep.plan, scored[0]["settings"]), name=f"{sweep.plan.name}-best", cross_fit=crossed)
    write_plan(best, directory / "best.json")
    importances = draw(scored, sweep.space, directory)
    for place, each in enumerate(scored[:5], 1):
        settings = "  ".join(f"{name.rpartition('.')[2]} {_as_text(value)}" for name, value in each["settings"].items())
        print(f"tune: {place}. score {each['score']:.3f} at train_step {each['curve'][-1][0]:.0f}: {settings}")
    print("tune: importance: " + ", ".join(f"{n.rpartition('.')[2]} {v:.2f}" for n, v in importances.items()))
    made = made_from(sweep.crossed, {f"edits.{split}": training_data.edits_file(sweep.plan, split) for split in FOLDS})
    write_text(directory / "provenance.json", json.dumps(made, indent=1))
    log_to_mlflow(sweep, trials, made)
    print(f"tune: the best plan: python jobs/train.py plan={directory / 'best.json'}")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def log_to_mlflow(sweep: Sweep, trials: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> None:
    """Log a run for the sweep with a nested run for each trial."""

    def fill(parent: TrainingRun) -> None:
        registry = Registry(sweep.plan.mlflow, "errata")
        for index, each in enumerate(trials):
            tags = {"mlflow.parentRunId": parent.run_id}
            with registry.training_run(f"trial-{index}", each["settings"], tags) as log:
                for step, score in each["curve"]:
                    log.log({SCORE: score}, int(step))
        parent.artifact(sweep.directory / "found", "sweep")

    params = {"trials": sweep.trials, "concurrent": sweep.concurrent, "validation": sweep.validation, "sweep": sweep.fields}
    log_run("tune", sweep.name, sweep.plan, made, fill, params)


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    run_job(from_command_line, run)
