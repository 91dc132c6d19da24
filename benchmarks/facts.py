"""Editors on the default model, one stream of true corrections in chat: `make bench-real` and others.

Test facts that SmolLM2 gets wrong are edited in batches of 10 in this process, without a guard and without making anything
again, and asked by free generation as `make demo` asks them. The three are settings of one program: they have other rows,
numbers of edits and forms of the questions. A row is on the disk when it is measured, so that the same command goes on with the
rows that are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from benchmarks.facts_progress import in_parts, say
from benchmarks.facts_report import report, scale_of, show_all
from benchmarks.facts_rows import NUM_TRIALS, ORACLE, UNEDITED, EditorRow, rows_of
from benchmarks.facts_run import PROMPTS_AT_ONCE, BeforeEdits, RowRun, Tokens, generated
from benchmarks.facts_store import RowStore
from benchmarks.facts_stream import CorrectionStream, StreamSizes
from errata.benchmark.run import settings_of
from errata.editors.editor import Editor
from errata.evaluate.transformations import TransformedQuestions
from errata.hardware import hardware
from errata.local.terminal import console
from errata.model.language_model import LanguageModel, checkpoint_fingerprint, load
from errata.testbed import smollm2
from errata.text.dialogue import Prompt
from jobs.demo_run import BATCH_SIZE
from jobs.entry import run_job
from jobs.workers import set_threads, time_left

PARTS = (UNEDITED, ORACLE, "RLEdit", "other policy", "bare targets", "one pass", "without memory", "without metric", "FT-L")
WEIGHTS = ("RLEdit", "AlphaEdit", "MEMIT", "FT-L", "LoRA")
MEMORIES = ("SCR", "IKE", "SERAC", "RECIPE", "SWEA", "ELDER", "RTD", "state", "answer")
# The first five rows of the headline table have several seeds.
HEADLINE = (UNEDITED, ORACLE, "RLEdit", "SCR", "answer")
ALL = (*HEADLINE, *(name for name in (*WEIGHTS, *MEMORIES) if name not in HEADLINE))
CHOICE = ("question", "phrasing", "kept")  # measures by which a setting is chosen


@dataclass(frozen=True)
class FactsSettings:
    """A comparison: its name, rows, numbers of edits and facts to keep, and seeds.

    Seeds after the first are run for the first `repeated` rows. Settings are chosen on `search_edits` training facts. `scale`
    are numbers of records at which the retrieval of a memory is measured, too. `has_more_forms` as in `StreamSizes`.
    """

    name: str
    rows: tuple[str, ...]
    edits: int
    right: int = 50
    unrelated: int = 200
    re_edits: float = 0.0
    seeds: tuple[int, ...] = (0,)
    repeated: int = 5
    has_more_forms: bool = False
    search_edits: int = 20
    scale: tuple[int, ...] = ()
    policy: str = ""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.edits < BATCH_SIZE:
            raise ValueError(f"edits is at least {BATCH_SIZE}, not {self.edits}")

    def sizes(self, seed: int) -> StreamSizes:
        return StreamSizes(self.edits, self.right, self.unrelated, self.re_edits, seed, self.has_more_forms)


def suites() -> dict[str, FactsSettings]:
    """Return the three comparisons; FULL=1 is the long run of the headline table."""
    is_full = os.environ.get("FULL", "0") not in ("", "0")
    return {
        "bench-facts": FactsSettings("bench-facts", PARTS, edits=60),
        "bench-memory-editors": FactsSettings(
            "bench-memory-editors", (UNEDITED, ORACLE, *WEIGHTS, *MEMORIES), edits=500, scale=(10_000, 100_000)
        ),
        "bench-real": FactsSettings(
            "bench-real",
            ALL,
            edits=1000 if is_full else 60,
            re_edits=0.1,
            seeds=(0, 1, 2) if is_full else (0,),
            has_more_forms=True,
        ),
    }


class RowFailed(Exception):
    """A row whose editor cannot be made, or cannot edit this model."""


@dataclass
class Comparison:
    """State of a comparison: two copies of the model, of which one is never edited, and what is on the disk."""

    settings: FactsSettings
    store: RowStore
    streams: dict[int, tuple[CorrectionStream, BeforeEdits]] = field(default_factory=dict)

    @cached_property
    def model(self) -> LanguageModel:
        return load(smollm2.fetched())

    @cached_property
    def unedited(self) -> LanguageModel:
        return load(smollm2.fetched())

    def stream(self, seed: int) -> tuple[CorrectionStream, BeforeEdits]:
        """Return the stream of a seed, and the unedited model's answers to its questions, which are kept on the disk."""
        if seed not in self.streams:
            say(f"seed {seed}: facts that the model gets wrong, and its answers before the edits")
            stream = self._corrections(self.settings.sizes(seed))
            self.streams[seed] = stream, self._before(stream)
        return self.streams[seed]

    def _corrections(self, sizes: StreamSizes) -> CorrectionStream:
        """Find the facts; the edits, whose answers take long to compose, are kept on the disk."""
        key = {"sizes": asdict(sizes), "model": self.fingerprint}
        return CorrectionStream.of(
            self.model, sizes, lambda make: self.store.kept(f"edits of {sizes.part} {sizes.seed}", key, make)
        )

    def _before(self, stream: CorrectionStream) -> BeforeEdits:
        """Ask the model, at its base weights; answers are kept part by part, because they take minutes."""
        tokens: Tokens = {}
        for part in in_parts(stream.prompts, PROMPTS_AT_ONCE, "answers before the edits"):
            name = f"answers before {_digest(list(map(_text_of, part)))}"
            found = self.store.kept(name, {"model": self.fingerprint}, partial(self._ask, part))
            tokens |= dict(zip(part, found, strict=True))
        return BeforeEdits.of(self.model, tokens)

    def _ask(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return list(generated(self.model, prompts).values())

    @cached_property
    def fingerprint(self) -> str:
        return checkpoint_fingerprint(smollm2.fetched())

    @cached_property
    def search(self) -> tuple[CorrectionStream, BeforeEdits]:
        """The stream of training facts on which settings are chosen."""
        settings = self.settings
        whole = self._corrections(StreamSizes(settings.search_edits, settings.right, 0, part="train"))
        asked = TransformedQuestions({name: whole.asked.asked[name] for name in CHOICE})
        stream = replace(whole, asked=asked, unrelated=())
        return stream, self._before(stream)

    def run_of(self, row: EditorRow, stream: CorrectionStream, before: BeforeEdits) -> RowRun:
        return RowRun(row, self.model, self.unedited, stream, before)

    def chosen(self, row: EditorRow) -> tuple[Editor, int]:
        """Return the best of a row's settings on training facts, the first in a tie, and how many were compared."""
        if len(row.makes) == 1:
            return row.makes[0](self.model), row.trials
        editors = [make(self.model) for make in row.makes[:NUM_TRIALS]]
        settings = [settings_of(editor) for editor in editors]

        def compare() -> list[float]:
            scores = [self.run_of(row, *self.search).validation(editor) for editor in editors]
            say(f"{row.name}: settings on {self.settings.search_edits} training facts: {', '.join(f'{s:.3f}' for s in scores)}")
            return scores

        key = {"settings": _digest(settings), "edits": self.settings.search_edits, "model": self.fingerprint}
        scores = self.store.kept(f"choice of {row.name}", key, compare)
        return editors[scores.index(max(scores))], len(scores)

    def measured(self, row: EditorRow, seed: int) -> dict[str, Any]:
        """Return a row's figures for a seed, from the disk if they are there. Raises `RowFailed` if its editor fails."""
        sizes = asdict(self.settings.sizes(seed))
        given = {"policy": self.settings.policy, "artifact": self.settings.artifacts.get(row.name, "")}
        key = {"sizes": sizes, "search_edits": self.settings.search_edits, "model": self.fingerprint, **given}

        def measure() -> dict[str, Any]:
            stream, before = self.stream(seed)
            try:
                editor, trials = self.chosen(row) if row.makes else (None, 0)
                figures = self.run_of(row, stream, before).figures(editor)
            except ValueError as wrong:
                raise RowFailed(str(wrong)) from wrong
            about = {"editor": row.name, "corpus": "world facts", "edits": self.settings.edits, "seed": seed}
            settings = {} if editor is None else settings_of(editor)
            return about | figures | {"trials": trials, "information": row.information, "settings": settings}

        return self.store.kept(f"{row.name} {seed}", key, measure)


def _text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt.to_json())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def run(settings: FactsSettings, command: str) -> Path:
    """Measure, print, and write `$ERRATA_HOME/NAME/report.json` after each row; returns its path."""
    set_threads()
    about = {"command": command, "seed": settings.seeds[0], "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    comparison = Comparison(settings, RowStore(settings.name, settings.fresh))
    rows, skipped = rows_of(settings.rows, settings.artifacts, settings.policy), dict[str, str]()
    for row in rows:
        if row.missing:
            skipped[row.name] = row.missing
            say(f"{row.name} is left out: {row.missing}")
    there = [row for row in rows if not row.missing]
    due = [(row, seed) for at, seed in enumerate(settings.seeds) for row in (there[: settings.repeated] if at else there)]
    found: list[dict[str, Any]] = []
    began = time.monotonic()
    for done, (row, seed) in enumerate(due, 1):
        try:
            found.append(comparison.measured(row, seed))
        except RowFailed as wrong:  # One row that cannot be made does not end a run of hours.
            skipped[row.name] = str(wrong)
            say(f"{row.name} is left out: {wrong}")
        say(f"{done}/{len(due)} rows, {row.name}, seed {seed}: {time_left(began, done, len(due))}")
        if found:
            report(settings.name, found, {**about, "skipped": skipped, "settings": asdict(settings)}, [])
    scale = comparison.store.kept("scale", {"sizes": settings.scale}, lambda: scale_of(settings.scale))
    show_all(settings.name, found, scale)
    return report(settings.name, found, {**about, "skipped": skipped, "settings": asdict(settings)}, scale)


def read(arguments: Sequence[str]) -> FactsSettings:
    """Read the name of a comparison and `--name value` arguments. Raises `ValueError` for unknown rows or too few edits."""
    known = suites()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=known)
    parser.add_argument("--rows", help="names with commas; the unedited model is always the first row")
    for name in ("edits", "right", "unrelated", "repeated", "search-edits"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--re-edits", type=float)
    parser.add_argument("--seeds", type=_numbers, help="with commas")
    parser.add_argument("--scale", type=_numbers, help="numbers of records with commas, at which retrieval is timed; 0: none")
    parser.add_argument("--policy")
    parser.add_argument("--artifact", action="append", default=[], metavar="EDITOR=FOLDER")
    parser.add_argument("--fresh", action="store_true", default=None, help="measure rows again that are on the disk")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    settings, artifacts = known[given.pop("name")], given.pop("artifact")
    if "rows" in given:
        names = [name.strip() for name in given["rows"].split(",") if name.strip()]
        given["rows"] = (UNEDITED, *(name for name in names if name != UNEDITED))
    given |= {"scale": tuple(size for size in given["scale"] if size)} if "scale" in given else {}
    given["artifacts"] = dict(_pair(text) for text in artifacts)
    settings = replace(settings, **given)
    rows_of(settings.rows, settings.artifacts, settings.policy)
    return settings


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _pair(text: str) -> tuple[str, str]:
    name, sign, folder = text.partition("=")
    if not sign or not (Path(folder) / "artifact.json").exists():
        raise ValueError(f"--artifact is EDITOR=FOLDER, of a folder with an artifact.json, and not {text!r}")
    return name, folder


def main() -> None:
    arguments = sys.argv[1:]
    full = f"FULL={os.environ['FULL']} " if os.environ.get("FULL") else ""
    run_job(read, lambda settings: run(settings, f"{full}python -m benchmarks.facts {' '.join(arguments)}"))


if __name__ == "__main__":
    main()
