"""The lifelong benchmark of a suite: `python jobs/bench.py suite=lifelong seeds=0,1,2 editors=RLEdit,MEND FULL`.

Trains what learns (on Ray, which is stopped before anything is timed), chooses each contestant's settings on a validation
stream, and plays the test stream for every seed, one editor after the other on all cores. What is finished is kept in
$ERRATA_HOME/bench and not done again, so a run that was broken off goes on; `fresh=1` does all of it anew but the model.
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

import ray
import torch
from rich.progress import Progress

from errata.benchmark.files import read_answers, write, write_answers
from errata.benchmark.results import Answer, CheckpointScores
from errata.benchmark.run import UNEDITED, BenchmarkedEditor, run, settings_of
from errata.benchmark.stream import CHECKPOINTS, BenchmarkStream, UneditedAnswers
from errata.benchmark.summary import summarise
from errata.benchmark.tables import described, markdown
from errata.durable import replaced
from errata.editors import load_artifact, name_of
from errata.editors.closed_form.moments import Moments
from errata.hardware import hardware
from errata.home import home
from errata.local.terminal import console
from errata.model.language_model import LanguageModel, load
from errata.provenance import code_digest
from errata.registry import TrainingRun
from jobs import moments, pretrain, train, training_data
from jobs.editor_settings import EditorGrid, EditorSetting
from jobs.entry import run_job
from jobs.mlflow_run import log_run, made_from
from jobs.suites import Suite, from_arguments
from jobs.workers import forget_run, set_threads, time_left


@dataclass
class Bench:
    """A suite being run: the base model, what it says on each stream, what has been trained by this process, the moments of
    the keys by the part of the corpus that they were measured on, and all answers at the ends of the test streams."""

    suite: Suite
    model: LanguageModel
    bases: dict[tuple[str, int], UneditedAnswers] = field(default_factory=dict)
    trained: set[Path] = field(default_factory=set)
    measured: dict[str, Moments] = field(default_factory=dict)
    answered: list[Answer] = field(default_factory=list)

    def stream(self, split: str, seed: int) -> BenchmarkStream:
        suite = self.suite
        count = suite.num_edits if split == "test" else suite.num_validation
        edits = suite.corpus.edits(split, count, seed)
        sentences = suite.corpus.plain_sentences(held_out=True)
        checkpoints = suite.checkpoints if split == "test" else CHECKPOINTS[:0]
        return BenchmarkStream(tuple(edits), tuple(sentences), suite.batch_size, checkpoints, seed)

    def prepare(self, candidate: EditorSetting, seed: int) -> None:
        """What is done once, before the first edit, and on Ray: a policy is trained, or moments are measured."""
        if candidate.schedule is None:
            for split in ("validation", "test") if candidate.protects else ():
                self.measure(candidate.part(split))
            return
        plan = self.suite.plan(candidate, seed)
        if self.suite.fresh and plan.artifact_dir not in self.trained:
            shutil.rmtree(plan.artifact_dir, ignore_errors=True)
            forget_run(plan, train.run_name(plan))
        self.trained.add(plan.artifact_dir)
        train.run(plan)

    def measure(self, part: str) -> None:
        """One artifact for all whom it may concern."""
        if part not in self.measured:
            plan = replace(self.suite.model_plan, metric_part=part)
            self.measured[part] = Moments.load(moments.run(moments.Measurement(plan, self.suite.protected, directions=True)))

    def benchmarked(self, name: str, candidate: EditorSetting, split: str, seed: int) -> BenchmarkedEditor:
        """A metric that is not to know the test facts does not know those of the validation stream when settings are chosen."""
        if candidate.schedule is None:
            if not candidate.protects:
                return BenchmarkedEditor(name, candidate.editor, settings=settings_of(candidate.editor))
            found = self.measured[candidate.part(split)]
            ready = candidate.editor.with_moments(found)
            return BenchmarkedEditor(name, ready, found.record["seconds"], settings_of(ready))
        plan = self.suite.plan(candidate, seed)
        editor, record = load_artifact(plan.artifact_dir)
        if (part := candidate.part(split)) != candidate.metric_part:
            text = training_data.texts(replace(plan, metric_part=part), self.model)
            editor = editor.with_metric(editor.measured_bases(self.model, text))
        return BenchmarkedEditor(name, editor, record.get("train_s"), settings_of(editor))

    def rows(self, name: str, candidate: EditorSetting | None, split: str, seed: int) -> list[CheckpointScores]:
        """The rows of one run, from the cache if it has been done; `candidate` None is the unedited model."""
        path = home() / "bench" / split / f"{self.digest(candidate, split, seed)}.json"
        said = path.with_suffix(".answers.parquet")
        if path.exists() and not self.suite.fresh:
            self._keep(name, read_answers(said) if split == "test" else [])
            return [replace(CheckpointScores.from_json(record), editor=name) for record in json.loads(path.read_text())["rows"]]
        stream = self.stream(split, seed)
        if (split, seed) not in self.bases:
            self.bases[split, seed] = UneditedAnswers.of(self.model, stream)
        base = self.bases[split, seed]
        benchmarked = self.benchmarked(name, candidate, split, seed) if candidate else BenchmarkedEditor(name, None)
        answers: list[Answer] = []
        done = run(
            self.model, benchmarked, stream, base, lambda row: print(f"bench: {described(row)}", flush=True), answers.extend
        )
        if split == "test":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_answers(answers, said)  # before the rows, without which it is not looked for
            self._keep(name, answers)
        _write_whole(path, {"editor": name, "settings": _settings(candidate), "rows": [row.to_json() for row in done]})
        return done

    def _keep(self, name: str, answers: list[Answer]) -> None:
        self.answered += [replace(answer, editor=name) for answer in answers]

    def digest(self, candidate: EditorSetting | None, split: str, seed: int) -> str:
        """Of all that changes the rows: what is done on what, the package's code, and the machine."""
        suite = self.suite
        sizes = (suite.num_edits, suite.checkpoints) if split == "test" else (suite.num_validation, ())
        what = [suite.model_plan.digest("corpus", "shape"), _settings(candidate), split, sizes, suite.batch_size, seed]
        what += [code_digest(), hardware()["cpu"], str(torch.__version__)]
        if candidate and candidate.schedule:
            what.append(suite.plan(candidate, seed).digest())
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def choose(bench: Bench, contestant: EditorGrid) -> tuple[EditorSetting, list[float]]:
    """The candidate with the best harmonic mean at the end of the validation stream, and every one's; ties go to the first."""
    tried = contestant.candidates[: bench.suite.budget]
    if len(tried) == 1:
        return tried[0], []
    names = [f"{contestant.name} [{i + 1}/{len(tried)}]" for i in range(len(tried))]
    scores, started = [], time.monotonic()
    for name, candidate in zip(names, tried, strict=True):
        scores.append(bench.rows(name, candidate, "validation", 0)[-1]["harmonic_mean"] or 0.0)
        left = time_left(started, len(scores), len(tried))
        print(f"bench: {contestant.name}: {len(scores)}/{len(tried)} settings tried, {left}", flush=True)
    return tried[scores.index(max(scores))], scores


def run_suite(suite: Suite) -> Path:
    """Everything, to the files in `$ERRATA_HOME/bench-NAME`; returns that folder."""
    began = time.monotonic()
    set_threads()
    machine = hardware()
    pretrain.run(suite.model_plan)
    bench = Bench(suite, load(suite.model_plan.model_dir))
    for contestant in suite.chosen:
        for candidate in contestant.candidates[: suite.budget]:
            bench.prepare(candidate, 0)
    ray.shutdown()  # nothing else runs while edits are timed
    chosen = {contestant.name: choose(bench, contestant) for contestant in suite.chosen}
    for candidate, _ in chosen.values():
        for seed in suite.seeds:
            bench.prepare(candidate, seed)
    ray.shutdown()
    made = made_from(suite.model_plan)
    rows = play(bench, {name: candidate for name, (candidate, _) in chosen.items()})
    directory = home() / f"bench-{suite.name}"
    meta = {
        "command": shlex.join([*([f"FULL={full}"] if (full := os.environ.get("FULL")) else []), "python", *sys.argv]),
        "suite": suite.name,
        "seeds": suite.seeds,
        "hardware": machine,
        "corpus": dataclasses.asdict(suite.corpus),
        "shape": dataclasses.asdict(suite.shape),
        **{name: getattr(suite, name) for name in ("batch_size", "num_edits", "num_validation", "budget")},
        "settings": {name: _settings(candidate) for name, (candidate, _) in chosen.items()},
        "validation": {name: scores for name, (_, scores) in chosen.items()},
        "provenance": made,
        "load_at_end": round(os.getloadavg()[0], 2),
        "seconds": round(time.monotonic() - began, 1),
    }
    write(rows, directory, meta, note(suite), bench.answered)
    log_to_mlflow(suite, rows, made, directory)
    console().print(markdown(summarise(rows), note(suite)), soft_wrap=True, highlight=False)
    print(f"bench: {meta['seconds']:.0f} s; written to {directory}", flush=True)
    return directory


def play(bench: Bench, chosen: Mapping[str, EditorSetting]) -> list[CheckpointScores]:
    """The test stream for every seed: the unedited model, then each contestant."""
    everybody: dict[str, EditorSetting | None] = {UNEDITED: None, **chosen}
    streams = [(seed, name, candidate) for seed in bench.suite.seeds for name, candidate in everybody.items()]
    rows: list[CheckpointScores] = []
    started = time.monotonic()
    screen = console()
    # Standard output is the log, which rich would otherwise show whole.
    with Progress(console=screen, disable=not screen.is_terminal, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("test streams", total=len(streams))
        for done, (seed, name, candidate) in enumerate(streams, 1):
            progress.update(task, description=f"seed {seed}: {name}")
            rows += bench.rows(name, candidate, "test", seed)
            progress.advance(task)
            if not screen.is_terminal:
                print(f"bench: {done}/{len(streams)} test streams, {time_left(started, done, len(streams))}", flush=True)
    return sorted(rows, key=lambda row: list(everybody).index(row.editor))


def log_to_mlflow(suite: Suite, rows: Sequence[CheckpointScores], made: Mapping[str, Any], directory: Path) -> None:
    """A run with the files of the comparison, and each editor's harmonic mean after so many edits (of the first seed)."""

    def fill(run: TrainingRun) -> None:
        for row in (row for row in rows if row.seed == suite.seeds[0] and row["harmonic_mean"] is not None):
            run.log({f"harmonic_mean.{metric_name(row.editor)}": row["harmonic_mean"] or 0.0}, row.edits)
        run.artifact(directory, "bench")

    played = hashlib.sha256(json.dumps([row.to_json() for row in rows], sort_keys=True).encode()).hexdigest()[:12]
    names = ("batch_size", "num_edits", "num_validation", "budget", "seeds", "editors")
    params = {"suite": suite.name, **{name: getattr(suite, name) for name in names}}
    log_run("bench", f"bench-{suite.name}-{played}", suite.model_plan, made, fill, params)


def metric_name(editor: str) -> str:
    """Without what MLflow takes in no name of a metric."""
    return re.sub(r"[^\w\-. /]", "_", editor)


def note(suite: Suite) -> str:
    """What a reader of the table has to know."""
    tried = f"the best of {suite.budget} candidate settings for every editor, by the harmonic mean on {suite.num_validation} "
    tried += "validation edits (seed 0)"
    return (
        f"{suite.corpus.name}, {suite.num_edits} edits in batches of {suite.batch_size} (cut at checkpoints), seeds "
        f"{', '.join(map(str, suite.seeds))}. By free generation, and teacher-forced (tf). Settings: "
        f"{tried if suite.budget > 1 else 'one candidate for every editor, not chosen by any score'}; no training "
        "and no choice sees a test edit. RLEdit's metric and the moments of the closed-form editors are of all true sentences "
        "that the model was made from, or of the train half's where a row says so; training, or measuring moments, is done "
        "once, before the first edit. A cell is the mean over the seeds (smallest–largest); with one seed, the value and in "
        "square brackets its 95 % interval over resampled edits."
    )


def _settings(candidate: EditorSetting | None) -> dict[str, Any]:
    if candidate is None:
        return {}
    schedule = dataclasses.asdict(candidate.schedule) if candidate.schedule else None
    metric = {name: value for name in ("metric_part", "cross_fit") if (value := getattr(candidate, name))}
    return {"editor": name_of(candidate.editor), **settings_of(candidate.editor), "schedule": schedule, **metric}


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_job(from_arguments, run_suite)
