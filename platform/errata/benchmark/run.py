"""The loop of the lifelong benchmark: each editor makes the same batches of edits, scored at checkpoints on all edits so far.

The loop knows no editor by name. The model is edited in place through `EditedModel` (fp32 sums, cast once) and holds the base
weights again, bit for bit, after a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from errata.benchmark.checkpoint import (
    Scores,
    lifetime_scores,
    long_text_scores,
    norm_scores,
    perplexity_scores,
    question_scores,
)
from errata.benchmark.costs import added_tokens, answer_time, median_added, saved_bytes
from errata.benchmark.results import BY_NAME, Answer, CheckpointScores, answers_of
from errata.benchmark.stream import BenchmarkStream, UneditedAnswers, generated_answers
from errata.delta.accumulator import EditedModel
from errata.delta.kinds import Delta
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch, EditRejected, Question
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.hardware import PeakMemory
from errata.model.devices import devices_with
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.text.dialogue import Prompt
from errata.timing import stage_seconds

UNEDITED = "unedited"
NUM_TIMED = 20  # prompts whose answers are timed, with the edits and without them


@dataclass(frozen=True)
class BenchmarkedEditor:
    """An editor that is ready to edit, with its training time; editor None is the unedited model.

    `train_s`: seconds of its training, None if unknown; `settings`: its hyper-parameters, for the report.
    """

    name: str
    editor: Editor | None
    train_s: float | None = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Costs:
    """The time and memory of the edits so far: seconds by stage, number of edits made and refused, peak memory."""

    train_s: float | None
    seconds: dict[str, float] = field(default_factory=dict)
    num_edits: int = 0
    num_rejected: int = 0
    precompute_s: float = 0.0
    peak_bytes: int | None = None
    saved_bytes: int = 0

    def add(self, seconds: Mapping[str, float], num_edits: int) -> None:
        self.num_edits += num_edits
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def per_edit_ms(self, name: str) -> float | None:
        """Return the mean time of a stage per edit, None before the first edit."""
        return 1e3 * self.seconds.get(name, 0.0) / self.num_edits if self.num_edits else None

    @property
    def scores(self) -> Scores:
        """The measures of the protocol `cost`."""
        total, capture, solve = (self.per_edit_ms(name) for name in ("total", "capture", "solve"))
        rest = None if total is None or capture is None or solve is None else total - capture - solve
        return Scores(
            {
                "edit_ms": total,
                "capture_ms": capture,
                "solve_ms": solve,
                "rest_ms": rest,
                "train_s": self.train_s,
                "precompute_s": self.precompute_s,
                "peak_bytes": self.peak_bytes,
                "rejected": self.num_rejected,
                "saved_bytes": self.saved_bytes if self.num_edits else None,
            }
        )


class BenchmarkRun:
    """A run of one editor on one stream.

    `checkpoints()` yields the scores at each checkpoint; after the last one, `answers` has every answer.
    """

    def __init__(
        self, model: LanguageModel, benchmarked: BenchmarkedEditor, stream: BenchmarkStream, unedited: UneditedAnswers
    ) -> None:
        self.model, self.benchmarked, self.stream, self.unedited = model, benchmarked, stream, unedited
        self.costs = Costs(benchmarked.train_s)
        editor = benchmarked.editor
        self.spec = ModelSpec(()) if editor is None else find_matrices(model.module, editor.modules)
        self.edited = EditedModel(model.module, self.spec)
        self.immediate: dict[Question, bool] = {}  # success of the sampled edits immediately after their batch
        self.made_at: dict[Question, int] = {}  # the number of edits then
        self.answers: list[Answer] = []

    def checkpoints(self) -> Iterator[CheckpointScores]:
        state = self._start()
        for batch, done in self.stream.batches():
            if self.benchmarked.editor is not None:
                delta, state = self._edit(self.benchmarked.editor, batch, state, probe_memory=done in self.stream.stops)
                self.edited.add(delta)
                self.costs.saved_bytes += saved_bytes(delta)
            self._ask_sampled(done - len(batch), done)
            if done in self.stream.stops:
                yield self._scores(done)

    def _ask_sampled(self, begin: int, end: int) -> None:
        """Record which of the sampled edits among those just made are answered by their targets."""
        asked = {prompt: edit.question(prompt) for edit in self.stream.sampled(begin, end) for prompt in edit.prompts}
        generated = generated_answers(self.model, list(asked), self.unedited.max_tokens)
        self.immediate |= {question: question.is_answered_by(generated[prompt]) for prompt, question in asked.items()}
        self.made_at |= dict.fromkeys(asked.values(), end)

    def _start(self) -> EditorState:
        if self.benchmarked.editor is None:
            return EditorState()
        with stage_seconds() as seconds:
            state = self.benchmarked.editor.start(self.model, self.spec)
        self.costs.precompute_s = seconds["total"]
        self._warm_up(self.benchmarked.editor, state)
        return state

    def _warm_up(self, editor: Editor, state: EditorState) -> None:
        """Make one edit that is neither timed nor kept, because the first call of a process pays for one-time set-up.

        It uses the last batch, so that nothing an editor caches from it helps the first batch.
        """
        *_, last = self.stream.batches()
        with suppress(EditRejected):
            editor.edit(self.model, last[0], state)

    def _edit(self, editor: Editor, batch: EditBatch, state: EditorState, probe_memory: bool) -> tuple[Delta, EditorState]:
        """Make an edit, empty if the editor refuses; `probe_memory` repeats it, without effect, to measure its memory."""
        try:
            with stage_seconds() as seconds:
                delta, after = editor.edit(self.model, batch, state)
        except EditRejected:
            self.costs.num_rejected += len(batch)
            return WeightDelta({}), state
        self.costs.add(seconds, len(batch))
        if probe_memory:
            with PeakMemory(*devices_with(self.model.module)) as memory:
                editor.edit(self.model, batch, state)
            self.costs.peak_bytes = memory.num_bytes
        return delta, after

    def _scores(self, done: int) -> CheckpointScores:
        is_end = done == len(self.stream.edits)
        norms = norm_scores(self.edited)
        found, questions, generated = question_scores(self.model, self.stream, self.unedited, done, self.immediate)
        found |= lifetime_scores(questions, generated, self.immediate, self.made_at)
        found |= perplexity_scores(self.model, self.stream, self.unedited)
        found |= long_text_scores(self.model, self.stream) if is_end else Scores()
        found |= norms | self.costs.scores
        if self.benchmarked.editor is not None:
            found |= self._answer_costs([question.prompt for question in questions.efficacy], is_end)
        values = {name: found.values.get(name) for name in BY_NAME}
        scores = CheckpointScores(self.benchmarked.name, self.stream.seed, done, values, found.intervals)
        if is_end:
            self.answers = answers_of(scores, questions, generated, self.unedited.answers)
        return scores

    def _answer_costs(self, prompts: Sequence[Prompt], is_end: bool) -> Scores:
        """Measure what an answer costs more: tokens, and at the end milliseconds, first with the edits and then without."""
        model, limit = self.model, self.unedited.max_tokens
        tokens = Scores({"added_tokens": added_tokens(model, prompts, limit)})
        if not is_end:
            return tokens
        timed, content = prompts[:NUM_TIMED], self.edited.content()
        answer_time(model, timed[0], limit)  # The first call of a process pays for one-time set-up.
        after = [answer_time(model, prompt, limit) for prompt in timed]
        self.edited.set([])
        before = [answer_time(model, prompt, limit) for prompt in timed]
        self.edited.set([], content)
        more = median_added(zip(before, after, strict=True))
        return tokens | Scores({"added_first_ms": more.first_ms, "added_ms": more.all_ms})


def run(
    model: LanguageModel,
    benchmarked: BenchmarkedEditor,
    stream: BenchmarkStream,
    unedited: UneditedAnswers | None = None,
    after_checkpoint: Callable[[CheckpointScores], None] = lambda scores: None,
    after_run: Callable[[list[Answer]], None] = lambda answers: None,
) -> list[CheckpointScores]:
    """Run one editor over the stream and return its scores at each checkpoint; `after_run` gets every answer at the end.

    `model` holds the base weights before and after. Raises `ValueError` if the model does not have the editor's matrices, and
    `AssertionError` if the editor changed a parameter by itself.
    """
    unedited = unedited or UneditedAnswers.of(model, stream)
    before = fingerprint(model)
    one = BenchmarkRun(model, benchmarked, stream, unedited)
    found: list[CheckpointScores] = []
    try:
        for scores in one.checkpoints():
            found.append(scores)
            after_checkpoint(scores)
    finally:
        one.edited.set([])
    changed = [name for name, bits in fingerprint(model).items() if bits != before[name]]
    assert not changed, f"{benchmarked.name} left the model changed: {changed}"
    after_run(one.answers)
    return found


def run_all(
    model: LanguageModel,
    benchmarked: Sequence[BenchmarkedEditor],
    stream: BenchmarkStream,
    after_checkpoint: Callable[[CheckpointScores], None] = lambda scores: None,
    after_run: Callable[[list[Answer]], None] = lambda answers: None,
) -> list[CheckpointScores]:
    """Run the unedited model first, then every editor, over the same stream; the callbacks are those of `run`.

    Raises `ValueError`, before any run, for an editor whose matrices the model does not have.
    """
    for one in benchmarked:
        if one.editor is not None:
            find_matrices(model.module, one.editor.modules)
    unedited = UneditedAnswers.of(model, stream)
    everything = (BenchmarkedEditor(UNEDITED, None), *benchmarked)
    return [row for one in everything for row in run(model, one, stream, unedited, after_checkpoint, after_run)]


def settings_of(editor: Any) -> dict[str, Any]:
    """Return the hyper-parameters of an editor, nested ones included, without what was trained or measured."""
    values = {f.name: getattr(editor, f.name) for f in dataclasses.fields(editor) if f.compare}
    return {name: settings_of(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def fingerprint(model: LanguageModel) -> dict[str, int]:
    """Sum the bits of each parameter: equal for equal bits, NaNs included."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(tensor.detach().contiguous().view(integers[tensor.element_size()]).sum(dtype=torch.int64))
        for name, tensor in model.module.named_parameters()
    }
