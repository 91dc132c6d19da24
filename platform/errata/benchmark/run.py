"""The lifelong benchmark: one stream of edits, every editor on the same batches, scored on all edits so far at checkpoints.

It knows no editor by name. The model is edited in place through `EditedModel` (fp32 sums, cast once) and is the base model
again, bit by bit, when a run is over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from errata.benchmark.results import Answer, CheckpointScores, answers_of
from errata.benchmark.stream import CHECKPOINTS as CHECKPOINTS
from errata.benchmark.stream import BenchmarkStream, UneditedAnswers, long_texts
from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import WeightDelta
from errata.edit import EditBatch, EditRejected
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.evaluate.answers import same_answer
from errata.evaluate.bootstrap import Interval, ratio_interval
from errata.evaluate.fluency import consistencies, fluencies
from errata.evaluate.likelihood import likelihood, pairs_of, questions_of
from errata.evaluate.perplexity import perplexities
from errata.evaluate.questions import Question, Questions
from errata.evaluate.scorecard import Scorecard, score, teacher_forced
from errata.evaluate.teacher_forcing import teacher_force
from errata.hardware import PeakMemory
from errata.model.devices import devices_with
from errata.model.generation import answers
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.timing import stage_seconds

UNEDITED = "unedited"
_FREE = (
    *("efficacy", "generalisation", "locality", "locality_gold", "retention", "portability", "harmonic_mean"),
    *("retention_every", "retention_ratio"),
)
_FORCED = (
    *("efficacy", "generalisation", "locality", "retention", "portability", "harmonic_mean"),
    *("token_accuracy", "token_accuracy_generalisation", "token_accuracy_locality"),
)
_COMPARED = ("efficacy", "generalisation", "locality")
Scores = tuple[dict[str, Any], dict[str, Interval]]  # columns of a row, and the intervals of those that have one


@dataclass(frozen=True)
class BenchmarkedEditor:
    """An editor that is ready to edit, or None for the model as it is. `train_s`: seconds of its training, None if unknown."""

    name: str
    editor: Editor | None
    train_s: float | None = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Spent:
    """Seconds by stage over the edits that were made, how many those are, and the last memory peak."""

    seconds: dict[str, float] = field(default_factory=dict)
    num_edits: int = 0
    num_rejected: int = 0
    precompute_s: float = 0.0
    peak_bytes: int | None = None

    def add(self, seconds: Mapping[str, float], num_edits: int) -> None:
        self.num_edits += num_edits
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def per_edit_ms(self, name: str) -> float | None:
        return 1e3 * self.seconds.get(name, 0.0) / self.num_edits if self.num_edits else None

    @property
    def rest_ms(self) -> float | None:
        total, capture, solve = (self.per_edit_ms(name) for name in ("total", "capture", "solve"))
        return None if total is None or capture is None or solve is None else total - capture - solve


class Run:
    """One contender on one course; `Run(...).rows()` yields a row at each checkpoint; `answered` is there after the last."""

    def __init__(
        self, model: LanguageModel, contender: BenchmarkedEditor, course: BenchmarkStream, base: UneditedAnswers
    ) -> None:
        self.model, self.contender, self.course, self.base = model, contender, course, base
        self.spent = Spent()
        self.spec = ModelSpec(()) if contender.editor is None else find_matrices(model.module, contender.editor.modules)
        self.edited = EditedModel(model.module, self.spec)
        self.immediate: dict[Question, bool] = {}  # of the edits whose retention is measured against it
        self.answered: list[Answer] = []

    def rows(self) -> Iterator[CheckpointScores]:
        state = self._start()
        for batch, done in self.course.batches():
            if self.contender.editor is not None:
                delta, state = self._edit(self.contender.editor, batch, state, probe_memory=done in self.course.stops)
                self.edited.add(delta)
            self._ask_at_once(done - len(batch), done)
            if done in self.course.stops:
                yield self._row(done)

    def _ask_at_once(self, begin: int, end: int) -> None:
        """Whether the sampled ones of the edits that were just made are answered by their targets."""
        asked = {edit.prompt: edit.target for edit in self.course.sampled(begin, end)}
        said = answers(self.model, list(asked), self.base.max_tokens) if asked else {}
        self.immediate |= {(prompt, target): same_answer(said[prompt], target, target) for prompt, target in asked.items()}

    def _start(self) -> EditorState:
        if self.contender.editor is None:
            return EditorState()
        with stage_seconds() as seconds:
            state = self.contender.editor.start(self.model, self.spec)
        self.spent.precompute_s = seconds["total"]
        self._warm_up(self.contender.editor, state)
        return state

    def _warm_up(self, editor: Editor, state: EditorState) -> None:
        """One edit that is timed for nobody and thrown away: the first call of a process pays for what is set up once.

        It is of the last edits, so that nothing that an editor keeps of it serves the first.
        """
        *_, last = self.course.batches()
        with suppress(EditRejected):
            editor.edit(self.model, last[0], state)

    def _edit(
        self, editor: Editor, batch: EditBatch, state: EditorState, probe_memory: bool
    ) -> tuple[WeightDelta, EditorState]:
        """An update, or none where the editor refuses; memory from a repetition that changes nothing."""
        try:
            with stage_seconds() as seconds:
                delta, after = editor.edit(self.model, batch, state)
        except EditRejected:
            self.spent.num_rejected += len(batch)
            return WeightDelta({}), state
        self.spent.add(seconds, len(batch))
        if probe_memory:
            with PeakMemory(*devices_with(self.model.module)) as memory:
                editor.edit(self.model, batch, state)
            self.spent.peak_bytes = memory.num_bytes
        return delta, after

    def _row(self, done: int) -> CheckpointScores:
        growth, change = self._norms()
        spent, (shares, bounds), questions, said = self.spent, *self._scores(done)
        now, before = perplexities(self.model, self.course.sentences), self.base.perplexities
        long, long_bounds = self._long() if done == len(self.course.edits) else ({}, {})
        row = CheckpointScores(
            editor=self.contender.name,
            seed=self.course.seed,
            edits=done,
            **shares,
            **now.ratios_to(before),
            **long,
            edit_ms=spent.per_edit_ms("total"),
            train_s=self.contender.train_s,
            norm_growth=growth,
            delta_norm=change,
            precompute_s=spent.precompute_s,
            capture_ms=spent.per_edit_ms("capture"),
            solve_ms=spent.per_edit_ms("solve"),
            rest_ms=spent.rest_ms,
            peak_bytes=spent.peak_bytes,
            rejected=spent.num_rejected,
            intervals=bounds | now.intervals_to(before) | long_bounds,
        )
        if done == len(self.course.edits):
            self.answered = answers_of(row, questions, said, self.base.answers)
        return row

    def _scores(self, done: int) -> tuple[Scores, Questions, dict[str, str]]:
        """The columns of a row that are of questions; the questions and what was said to them."""
        edits, first, earlier = self.course.edits[:done], self.course.first[:done], self.course.sampled(0, done)
        questions = Questions.of(edits, first, earlier)
        said = answers(self.model, questions.prompts, self.base.max_tokens)
        free = score(questions, said, self.base.answers, self.immediate)
        pairs = pairs_of(edits, self.base.answers)
        known = teacher_force(self.model, list(dict.fromkeys((*questions.all, *questions_of(pairs)))))
        forced = teacher_forced(self.model, questions, self.base.predictions, known)
        compared = likelihood(self.model, pairs, known)
        if not gives_numbers(self.model, self.course.sentences[0]):
            free, forced, said = _nothing(free), _nothing(forced), dict.fromkeys(said, "")
        shares: dict[str, Any] = {}
        bounds: dict[str, Interval] = {}
        for column, card, names in (("{}", free, _FREE), ("{}_tf", forced, _FORCED), ("likelihood_{}", compared, _COMPARED)):
            shares |= {column.format(name): getattr(card, name) for name in names}
            bounds |= {column.format(name): card.intervals[name] for name in names if name in card.intervals}
        return (shares, bounds), questions, said

    def _long(self) -> Scores:
        texts = long_texts(self.model, self.course)
        found = {"fluency": fluencies(texts), "consistency": consistencies(texts, self.course.references)}
        known = {name: [(prompt, value, 1.0) for prompt, value in own.items()] for name, own in found.items() if own}
        means = {name: fmean(value for _, value, _ in marks) for name, marks in known.items()}
        return means, {name: bounds for name, marks in known.items() if (bounds := ratio_interval(marks)) is not None}

    def _norms(self) -> tuple[float, float]:
        """(|W| / |W0|, |W - W0| / |W0|) of the weights as they are, where they are largest; infinite if not finite."""
        held = self.edited.accumulator
        found = [(1.0, 0.0)] if not held.base_OI else []
        for name, base_OI in held.base_OI.items():
            now, base = held.weight(name).double(), base_OI.double()
            ratios = torch.stack([now.norm(), (now - base).norm()]) / base.norm()
            growth, change = ratios.nan_to_num(math.inf, math.inf).tolist()
            found.append((growth, change))
        return max(growth for growth, _ in found), max(change for _, change in found)


def run(
    model: LanguageModel,
    contender: BenchmarkedEditor,
    course: BenchmarkStream,
    base: UneditedAnswers | None = None,
    after_row: Callable[[CheckpointScores], None] = lambda row: None,
    after_run: Callable[[list[Answer]], None] = lambda answered: None,
) -> list[CheckpointScores]:
    """A row at each checkpoint of `course`, and to `after_run` every answer at the last. `model` holds the base weights, before
    and after.

    Raises `ValueError` if the editor was not made for the model, and `AssertionError` if it changed a parameter by itself.
    """
    base = base or UneditedAnswers.of(model, course)
    before = fingerprint(model)
    one = Run(model, contender, course, base)
    rows: list[CheckpointScores] = []
    try:
        for row in one.rows():
            rows.append(row)
            after_row(row)
    finally:
        one.edited.set([])
    changed = [name for name, bits in fingerprint(model).items() if bits != before[name]]
    assert not changed, f"{contender.name} left the model changed: {changed}"
    after_run(one.answered)
    return rows


def run_all(
    model: LanguageModel,
    contenders: Sequence[BenchmarkedEditor],
    course: BenchmarkStream,
    after_row: Callable[[CheckpointScores], None] = lambda row: None,
    after_run: Callable[[list[Answer]], None] = lambda answered: None,
) -> list[CheckpointScores]:
    """The unedited model first, then every contender on the same course, with `after_row` and `after_run` as `run` has them.

    Raises `ValueError`, before any of them runs, for one whose matrices the model does not have.
    """
    for contender in contenders:
        if contender.editor is not None:
            find_matrices(model.module, contender.editor.modules)
    base = UneditedAnswers.of(model, course)
    everybody = (BenchmarkedEditor(UNEDITED, None), *contenders)
    return [row for one in everybody for row in run(model, one, course, base, after_row, after_run)]


@torch.no_grad()
def gives_numbers(model: LanguageModel, text: str) -> bool:
    """Whether its logits are finite: the largest of NaNs is token 0, which may by accident be an answer."""
    ids_BS = torch.tensor([model.tokenizer(text)["input_ids"]], device=model.device)
    return bool(torch.isfinite(model.module(input_ids=ids_BS, use_cache=False).logits).all())


def _nothing(card: Scorecard) -> Scorecard:
    """The same questions, and none answered."""
    shares = {f.name: 0.0 for f in dataclasses.fields(card) if isinstance(getattr(card, f.name), float)}
    by_kind, intervals = dict.fromkeys(card.portability_by_kind, 0.0), dict.fromkeys(card.intervals, (0.0, 0.0))
    return dataclasses.replace(card, **shares, portability_by_kind=by_kind, intervals=intervals)  # type: ignore[arg-type]


def settings_of(editor: Any) -> dict[str, Any]:
    """The hyper-parameters of an editor (and of what it is made of), without what was trained or measured."""
    values = {f.name: getattr(editor, f.name) for f in dataclasses.fields(editor) if f.compare}
    return {name: settings_of(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def fingerprint(model: LanguageModel) -> dict[str, int]:
    """A sum over the bits of each parameter: the same for the same bits, NaNs included."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(tensor.detach().contiguous().view(integers[tensor.element_size()]).sum(dtype=torch.int64))
        for name, tensor in model.module.named_parameters()
    }
