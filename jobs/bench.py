"""The lifelong benchmark of a suite: `python jobs/bench.py suite=lifelong seeds=0,1,2 editors=MEMIT,MEND FULL`.

Trains the hypernetworks on Ray, which is stopped before anything is timed, chooses each editor's settings on a validation
stream, and runs the test stream for every seed, one editor after the other on all cores. Finished runs are cached in
$ERRATA_HOME/bench, so that an interrupted benchmark continues; `fresh=1` ignores the cache, except for the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from errata.benchmark.files import read_answers, write, write_answers
from errata.benchmark.results import Answer, CheckpointScores
from errata.benchmark.run import UNEDITED, BenchmarkedEditor, run, settings_of
from errata.benchmark.stream import CHECKPOINTS, BenchmarkStream, UneditedAnswers
from errata.benchmark.summary import summarise
from errata.benchmark.tables import described, markdown
from errata.durable import write_text
from errata.editors import load_artifact, name_of
from errata.editors.closed_form.moments import Moments
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.hardware import hardware
from errata.home import home
from errata.local.terminal import console
from errata.model.language_model import LanguageModel, load
from errata.provenance import code_digest
from errata.registry import TrainingRun
from errata.testbed.counterfact import CounterFact
from jobs import moments, pretrain, train, training_data
from jobs.arguments import check_model, with_checkpoint
from jobs.editor_settings import EditorGrid, EditorSetting
from jobs.entry import run_job, stop_ray
from jobs.mlflow_run import log_run, made_from
from jobs.suites import Suite, from_arguments
from jobs.workers import forget_run, set_threads, time_left

SIZES = ("batch_size", "num_edits", "num_validation", "budget")


@dataclass
class SuiteRun:
    """State of a suite's run.

    `unedited` holds the base model's answers by split and seed, `trained` the policies that this process has trained, `moments`
    the keys' second moments by the part of the corpus, and `answered` all answers at the ends of the test streams.
    """

    suite: Suite
    model: LanguageModel
    unedited: dict[tuple[str, int], UneditedAnswers] = field(default_factory=dict)
    trained: set[Path] = field(default_factory=set)
    moments: dict[str, Moments] = field(default_factory=dict)
    answered: list[Answer] = field(default_factory=list)

    def stream(self, split: str, seed: int) -> BenchmarkStream:
        """Edits of a split with checkpoints; the validation stream is scored at its end only, as it is asked."""
        suite = self.suite
        count = suite.num_edits if split == "test" else suite.num_validation
        edits = suite.corpus.edits(split, count, seed)
        sentences = suite.corpus.plain_sentences(held_out=True)
        checkpoints = suite.checkpoints if split == "test" else CHECKPOINTS[:0]
        stream = BenchmarkStream(tuple(edits), tuple(sentences), suite.batch_size, checkpoints, seed)
        kinds = suite.corpus.rephrasing_kinds() if isinstance(suite.corpus, CounterFact) else {}
        asked = suite.transformations if split == "test" else ()
        stream = replace(stream, transformations=asked, rephrasing_kinds=kinds)
        if suite.rounds and split == "test":
            return stream.in_rounds(self.model, suite.rounds)
        return stream.re_edited(self.model, suite.shares)

    def prepare(self, setting: EditorSetting, seed: int) -> None:
        """Train the setting's policy or measure its moments on Ray, once and before the first edit."""
        if setting.schedule is None:
            for split in ("validation", "test") if setting.needs_moments else ():
                self.measure(setting.part(split))
            return
        plan = self.suite.plan(setting, seed)
        if self.suite.fresh and plan.artifact_dir not in self.trained:
            shutil.rmtree(plan.artifact_dir, ignore_errors=True)
            forget_run(plan, train.run_name(plan))
        self.trained.add(plan.artifact_dir)
        train.run(plan)

    def measure(self, part: str) -> None:
        """Measure the moments of all matrices that some editor of the suite needs, in one artifact."""
        if part not in self.moments:
            plan = replace(self.suite.model_plan, metric_part=part)
            self.moments[part] = Moments.load(
                moments.run(moments.Measurement(plan, self.suite.measured_modules, directions=True))
            )

    def benchmarked(self, name: str, setting: EditorSetting, split: str, seed: int) -> BenchmarkedEditor:
        """Load the prepared editor.

        While settings are chosen, a key preconditioner that excludes the test facts also excludes those of the validation
        stream.
        """
        if setting.schedule is None:
            if not setting.needs_moments:
                return BenchmarkedEditor(name, setting.editor, settings=settings_of(setting.editor))
            found = self.moments[setting.part(split)]
            ready = setting.editor.with_moments(found.whitened() if setting.white_metric else found)
            return BenchmarkedEditor(name, ready, found.record["seconds"], settings_of(ready))
        plan = self.suite.plan(setting, seed)
        editor, record = load_artifact(plan.artifact_dir)
        part = setting.part(split)
        if isinstance(editor, HypernetworkEditor) and part != setting.metric_part:
            text = training_data.texts(replace(plan, metric_part=part), self.model)
            editor = editor.with_preconditioners(editor.measure_preconditioners(self.model, text))
        return BenchmarkedEditor(name, editor, record.get("train_s"), settings_of(editor))

    def rows(self, name: str, setting: EditorSetting | None, split: str, seed: int) -> list[CheckpointScores]:
        """Return the scores of one run, from the cache if there; `setting` None is the unedited model."""
        path = home() / "bench" / split / f"{self.digest(setting, split, seed)}.json"
        answers_path = path.with_suffix(".answers.parquet")
        if path.exists() and not self.suite.fresh:
            self._keep(name, read_answers(answers_path) if split == "test" else [])
            return [replace(CheckpointScores.from_json(record), editor=name) for record in json.loads(path.read_text())["rows"]]
        stream = self.stream(split, seed)
        if (split, seed) not in self.unedited:
            self.unedited[split, seed] = UneditedAnswers.of(self.model, stream)
        unedited = self.unedited[split, seed]
        benchmarked = self.benchmarked(name, setting, split, seed) if setting else BenchmarkedEditor(name, None)
        answers: list[Answer] = []

        def show(row: CheckpointScores) -> None:
            print(f"bench: {described(row)}", flush=True)

        done = run(self.model, benchmarked, stream, unedited, show, answers.extend)
        if split == "test":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_answers(answers, answers_path)  # before the rows, which mark the run as done
            self._keep(name, answers)
        _write_whole(path, {"editor": name, "settings": _settings(setting), "rows": [row.to_json() for row in done]})
        return done

    def _keep(self, name: str, answers: list[Answer]) -> None:
        self.answered += [replace(answer, editor=name) for answer in answers]

    def digest(self, setting: EditorSetting | None, split: str, seed: int) -> str:
        """Hash everything that changes the rows: model, setting, stream, the package's code, and the machine."""
        suite = self.suite
        sizes = (suite.num_edits, suite.checkpoints) if split == "test" else (suite.num_validation, ())
        of_model = ("corpus", "shape", *(["model"] if suite.model else []))
        what = [suite.model_plan.digest(*of_model), _settings(setting), split, sizes, suite.batch_size, seed]
        what += [code_digest(), hardware()["cpu"], str(torch.__version__)]
        if suite.re_edits:
            what.append([suite.re_edits, suite.reversions])
        if suite.rounds and split == "test":
            what.append([suite.rounds, "rounds"])
        if suite.transformations and split == "test":
            what.append(suite.transformations)
        if setting and setting.schedule:
            what.append(suite.plan(setting, seed).digest())
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def choose(bench: SuiteRun, grid: EditorGrid) -> tuple[EditorSetting, list[float]]:
    """Return the setting with the best harmonic mean on the validation stream (the first in a tie), and all scores."""
    tried = grid.settings[: bench.suite.budget]
    if len(tried) == 1:
        return tried[0], []
    names = [f"{grid.name} [{i + 1}/{len(tried)}]" for i in range(len(tried))]
    scores, started = [], time.monotonic()
    for name, setting in zip(names, tried, strict=True):
        scores.append(bench.rows(name, setting, "validation", 0)[-1]["harmonic_mean"] or 0.0)
        left = time_left(started, len(scores), len(tried))
        print(f"bench: {grid.name}: {len(scores)}/{len(tried)} settings tried, {left}", flush=True)
    return tried[scores.index(max(scores))], scores


def from_command_line(arguments: Sequence[str]) -> Suite:
    """Read a suite, and check the model that it names. Raises `ValueError` that names a wrong argument."""
    suite = from_arguments(arguments)
    if suite.model:
        check_model(suite.model_plan, suite.edited_modules)
    return suite


def run_suite(suite: Suite) -> Path:
    """Run a suite and write its files to `$ERRATA_HOME/bench-NAME`; returns that folder."""
    began = time.monotonic()
    suite = replace(suite, model=with_checkpoint(suite.model_plan, suite.edited_modules).model)
    set_threads()
    machine = hardware()
    pretrain.run(suite.model_plan)
    bench = SuiteRun(suite, load(suite.model_plan.model_dir))
    for grid in suite.chosen:
        for setting in grid.settings[: suite.budget]:
            bench.prepare(setting, 0)
    chosen = {grid.name: choose(bench, grid) for grid in suite.chosen}
    for setting, _ in chosen.values():
        for seed in suite.seeds:
            bench.prepare(setting, seed)
    stop_ray()  # nothing else runs while edits are timed
    made = made_from(suite.model_plan)
    rows = run_test_streams(bench, {name: setting for name, (setting, _) in chosen.items()})
    directory = home() / f"bench-{suite.name}"
    meta = {
        "command": shlex.join([*([f"FULL={full}"] if (full := os.environ.get("FULL")) else []), "python", *sys.argv]),
        "suite": suite.name,
        "seeds": suite.seeds,
        "hardware": machine,
        "corpus": dataclasses.asdict(suite.corpus),
        "shape": dataclasses.asdict(suite.shape),
        **{name: getattr(suite, name) for name in (*SIZES, "re_edits", "reversions", "rounds", "transformations")},
        "settings": {name: _settings(setting) for name, (setting, _) in chosen.items()},
        "validation": {name: scores for name, (_, scores) in chosen.items()},
        **({"parts": parts} if (parts := {grid.name: grid.parts for grid in suite.chosen if grid.parts}) else {}),
        "provenance": made,
        "load_at_end": round(os.getloadavg()[0], 2),
        "seconds": round(time.monotonic() - began, 1),
    }
    write(rows, directory, meta, note(suite), bench.answered)
    log_to_mlflow(suite, rows, made, directory)
    console().print(markdown(summarise(rows), note(suite)), soft_wrap=True, highlight=False)
    print(f"bench: {meta['seconds']:.0f} s; written to {directory}", flush=True)
    return directory


def run_test_streams(bench: SuiteRun, chosen: Mapping[str, EditorSetting]) -> list[CheckpointScores]:
    """Run the test stream of every seed: the unedited model, then each editor."""
    settings: dict[str, EditorSetting | None] = {UNEDITED: None, **chosen}
    streams = [(seed, name, setting) for seed in bench.suite.seeds for name, setting in settings.items()]
    rows: list[CheckpointScores] = []
    started = time.monotonic()
    screen = console()
    # rich would show the frameworks' lines, which belong to the log.
    with Progress(console=screen, disable=not screen.is_terminal, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("test streams", total=len(streams))
        for done, (seed, name, setting) in enumerate(streams, 1):
            progress.update(task, description=f"seed {seed}: {name}")
            rows += bench.rows(name, setting, "test", seed)
            progress.advance(task)
            if not screen.is_terminal:
                print(f"bench: {done}/{len(streams)} test streams, {time_left(started, done, len(streams))}", flush=True)
    return sorted(rows, key=lambda row: list(settings).index(row.editor))


def log_to_mlflow(suite: Suite, rows: Sequence[CheckpointScores], made: Mapping[str, Any], directory: Path) -> None:
    """Log the comparison's files to MLflow, and each editor's harmonic mean by number of edits for the first seed."""

    def fill(run: TrainingRun) -> None:
        for row in (row for row in rows if row.seed == suite.seeds[0] and row["harmonic_mean"] is not None):
            run.log({f"harmonic_mean.{metric_name(row.editor)}": row["harmonic_mean"] or 0.0}, row.edits)
        run.artifact(directory, "bench")

    digest = hashlib.sha256(json.dumps([row.to_json() for row in rows], sort_keys=True).encode()).hexdigest()[:12]
    names = (*SIZES, "seeds", "editors", *(["re_edits", "reversions"] if suite.re_edits else []))
    names += tuple(name for name in ("rounds", "transformations") if getattr(suite, name))
    params = {"suite": suite.name, **{name: getattr(suite, name) for name in names}}
    log_run("bench", f"bench-{suite.name}-{digest}", suite.model_plan, made, fill, params)


def metric_name(editor: str) -> str:
    """Replace the characters that MLflow does not accept in the name of a metric."""
    return re.sub(r"[^\w\-. /]", "_", editor)


def note(suite: Suite) -> str:
    """Describe the protocol beneath the table."""
    tried = f"the best of {suite.budget} candidate settings for every editor, by the harmonic mean on {suite.num_validation} "
    tried += "validation edits (seed 0)"
    in_rounds = f"facts that are edited, edited again {suite.rounds} times and set to the truth," if suite.rounds else "edits"
    return (
        f"{suite.corpus.name}, {suite.num_edits} {in_rounds} in batches of {suite.batch_size} (cut at checkpoints), seeds "
        f"{', '.join(map(str, suite.seeds))}. By free generation, and teacher-forced (tf). Settings: "
        f"{tried if suite.budget > 1 else 'one candidate for every editor, not chosen by any score'}; no training "
        "and no choice sees a test edit. RLEdit's key preconditioner and the closed-form editors' moments are measured on "
        "all true sentences that the model was trained on, or on the train half's where a row says so. Training, or measuring "
        "moments, is done once, before the first edit. A cell is the mean over the seeds (smallest–largest); with one seed, "
        "the value and in square brackets its 95 % interval over resampled edits."
    )


def _settings(setting: EditorSetting | None) -> dict[str, Any]:
    if setting is None:
        return {}
    schedule = dataclasses.asdict(setting.schedule) if setting.schedule else None
    metric = {name: value for name in ("metric_part", "cross_fit", "white_metric") if (value := getattr(setting, name))}
    return {"editor": name_of(setting.editor), **settings_of(setting.editor), "schedule": schedule, **metric}


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_job(from_command_line, run_suite)
