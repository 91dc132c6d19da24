"""The lifelong benchmark: one stream of edits, every editor on the same batches, scored on all edits so far at checkpoints.

It knows no editor by name. The model is edited in place through `EditedModel` (fp32 sums, cast once) and is the base model
again, bit by bit, when a run is over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from errata.clock import measured
from errata.delta import EditedModel, WeightDelta
from errata.edit import Edit, EditBatch, EditRejected, check_edits
from errata.editors.editor import Editor, EditorState
from errata.evaluate import Predictions, Questions, Scorecard, perplexity, predictions, score, teacher_forced
from errata.generate import greedy
from errata.hardware import PeakMemory
from errata.model import LanguageModel, ModelSpec, find_matrices

CHECKPOINTS = (1, 10, 100, 200, 500, 1000)
UNEDITED = "unedited"


@dataclass(frozen=True)
class Contender:
    """An editor that is ready to edit, or None for the model as it is. `train_s`: seconds of its training, None if unknown."""

    name: str
    editor: Editor | None
    train_s: float | None = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Course:
    """What every contender runs: the edits in order, in batches of `batch_size` that are cut at each checkpoint.

    With batches of 10 and checkpoints 1, 10, 100, ... the batches are of 1, 9, 10, 10, ... edits: each checkpoint is met
    exactly, and the batches are the same for everybody. The end of the stream is a checkpoint, too. `sentences` state no fact
    and are for the perplexity; `max_answer_tokens` None is one more than the longest answer: what runs on is seen to.
    """

    edits: tuple[Edit, ...]
    sentences: tuple[str, ...]
    batch_size: int = 10
    checkpoints: tuple[int, ...] = CHECKPOINTS
    seed: int = 0
    max_answer_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.edits or not self.sentences:
            raise ValueError("a course needs at least one edit and one sentence")
        if self.batch_size < 1 or any(checkpoint < 1 for checkpoint in self.checkpoints):
            raise ValueError(f"batch_size and checkpoints are at least 1: {self.batch_size}, {self.checkpoints}")

    @property
    def stops(self) -> tuple[int, ...]:
        """The checkpoints on the way, and the end."""
        return tuple(sorted({stop for stop in self.checkpoints if stop < len(self.edits)} | {len(self.edits)}))

    @property
    def first(self) -> tuple[Edit, ...]:
        """The edits that retention asks for."""
        return self.edits[: self.batch_size]

    def batches(self) -> Iterator[tuple[EditBatch, int]]:
        """Each batch, and the number of edits after it."""
        begin = 0
        while begin < len(self.edits):
            end = min(begin + self.batch_size, next(stop for stop in self.stops if stop > begin))
            yield EditBatch(self.edits[begin:end]), end
            begin = end


@dataclass(frozen=True)
class Base:
    """What the unedited model says on a course: made once, for every contender."""

    answers: Mapping[str, str]
    predictions: Predictions
    perplexity: float
    max_tokens: int

    @classmethod
    def of(cls, model: LanguageModel, course: Course) -> Base:
        """`model` must hold the base weights. Raises `ValueError` naming the edits and prompts that do not fit its context."""
        check_edits(course.edits, model.tokenizer, model.max_tokens)
        questions = Questions.of(course.edits, course.first)
        longest = max(len(model.tokenizer(f" {answer}")["input_ids"]) for _, answer in questions.all)
        max_tokens = course.max_answer_tokens or longest + 1
        found = answers(model, questions.prompts, max_tokens)
        return cls(found, predictions(model, questions.all), perplexity(model, course.sentences), max_tokens)


@dataclass(frozen=True)
class Row:
    """One contender after `edits` edits of one course. Shares are of all questions on the edits so far, 0 to 1.

    By free generation, and teacher-forced under the same name with `_tf`: `locality` is agreement with the unedited model,
    `locality_gold` the true answers. `harmonic_mean` is of efficacy, generalisation and locality. `ppl_ratio`: perplexity now
    by that of the base, infinite for a model that gives no numbers. `norm_growth`: |W| by |W0|, and `delta_norm`: |W - W0| by
    |W0|, of the matrix where it is largest. `edit_ms`: `Editor.edit` per edit, mean over the stream so far, and of it
    `capture_ms`, `solve_ms` and `rest_ms`; `precompute_s`: `Editor.start`. `rejected` edits were refused, the stream went on.
    `peak_bytes`: memory of one more call with the last batch, not timed. None is what was not asked or is not known.
    """

    editor: str
    seed: int
    edits: int
    efficacy: float | None
    generalisation: float | None
    locality: float | None
    locality_gold: float | None
    retention: float | None
    portability: float | None
    harmonic_mean: float | None
    ppl_ratio: float
    edit_ms: float | None
    train_s: float | None
    efficacy_tf: float | None
    generalisation_tf: float | None
    locality_tf: float | None
    retention_tf: float | None
    portability_tf: float | None
    harmonic_mean_tf: float | None
    norm_growth: float
    delta_norm: float
    precompute_s: float
    capture_ms: float | None
    solve_ms: float | None
    rest_ms: float | None
    peak_bytes: int | None
    rejected: int


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
    """One contender on one course; `Run(...).rows()` yields a row at each checkpoint."""

    def __init__(self, model: LanguageModel, contender: Contender, course: Course, base: Base) -> None:
        self.model, self.contender, self.course, self.base = model, contender, course, base
        self.spent = Spent()
        self.spec = ModelSpec(()) if contender.editor is None else find_matrices(model.module, contender.editor.modules)
        self.edited = EditedModel(model.module, self.spec)

    def rows(self) -> Iterator[Row]:
        state = self._start()
        for batch, done in self.course.batches():
            if self.contender.editor is not None:
                delta, state = self._edit(self.contender.editor, batch, state, probe_memory=done in self.course.stops)
                self.edited.add(delta)
            if done in self.course.stops:
                yield self._row(done)

    def _start(self) -> EditorState:
        if self.contender.editor is None:
            return EditorState()
        with measured() as seconds:
            state = self.contender.editor.start(self.model, self.spec)
        self.spent.precompute_s = seconds["total"]
        return state

    def _edit(
        self, editor: Editor, batch: EditBatch, state: EditorState, probe_memory: bool
    ) -> tuple[WeightDelta, EditorState]:
        """An update, or none where the editor refuses; memory from a repetition that changes nothing."""
        try:
            with measured() as seconds:
                delta, after = editor.edit(self.model, batch, state)
        except EditRejected:
            self.spent.num_rejected += len(batch)
            return WeightDelta({}), state
        self.spent.add(seconds, len(batch))
        if probe_memory:
            with PeakMemory(self.model.device) as memory:
                editor.edit(self.model, batch, state)
            self.spent.peak_bytes = memory.num_bytes
        return delta, after

    def _row(self, done: int) -> Row:
        edits, first, spent = self.course.edits[:done], self.course.first[:done], self.spent
        prompts = Questions.of(edits, first).prompts
        free = score(edits, answers(self.model, prompts, self.base.max_tokens), self.base.answers, first)
        forced = teacher_forced(self.model, edits, first, self.base.predictions)
        if not gives_numbers(self.model, self.course.sentences[0]):
            free, forced = _nothing(free), _nothing(forced)
        growth, change = self._norms()
        return Row(
            editor=self.contender.name,
            seed=self.course.seed,
            edits=done,
            efficacy=free.efficacy,
            generalisation=free.generalisation,
            locality=free.locality,
            locality_gold=free.locality_gold,
            retention=free.retention,
            portability=free.portability,
            harmonic_mean=harmonic_mean(free.efficacy, free.generalisation, free.locality),
            ppl_ratio=perplexity(self.model, self.course.sentences) / self.base.perplexity,
            edit_ms=spent.per_edit_ms("total"),
            train_s=self.contender.train_s,
            efficacy_tf=forced.efficacy,
            generalisation_tf=forced.generalisation,
            locality_tf=forced.locality,
            retention_tf=forced.retention,
            portability_tf=forced.portability,
            harmonic_mean_tf=harmonic_mean(forced.efficacy, forced.generalisation, forced.locality),
            norm_growth=growth,
            delta_norm=change,
            precompute_s=spent.precompute_s,
            capture_ms=spent.per_edit_ms("capture"),
            solve_ms=spent.per_edit_ms("solve"),
            rest_ms=spent.rest_ms,
            peak_bytes=spent.peak_bytes,
            rejected=spent.num_rejected,
        )

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
    contender: Contender,
    course: Course,
    base: Base | None = None,
    after_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """A row at each checkpoint of `course`. `model` holds the base weights, before and after.

    Raises `ValueError` if the editor was not made for the model, and `AssertionError` if it changed a parameter by itself.
    """
    base = base or Base.of(model, course)
    before = fingerprint(model)
    one = Run(model, contender, course, base)
    rows: list[Row] = []
    try:
        for row in one.rows():
            rows.append(row)
            after_row(row)
    finally:
        one.edited.set([])
    changed = [name for name, bits in fingerprint(model).items() if bits != before[name]]
    assert not changed, f"{contender.name} left the model changed: {changed}"
    return rows


def run_all(
    model: LanguageModel,
    contenders: Sequence[Contender],
    course: Course,
    after_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """The unedited model first, then every contender on the same course.

    Raises `ValueError`, before any of them runs, for one whose matrices the model does not have.
    """
    for contender in contenders:
        if contender.editor is not None:
            find_matrices(model.module, contender.editor.modules)
    base = Base.of(model, course)
    return [row for one in (Contender(UNEDITED, None), *contenders) for row in run(model, one, course, base, after_row)]


def answers(model: LanguageModel, prompts: Sequence[str], max_tokens: int) -> dict[str, str]:
    """The greedy text after each prompt."""
    ids = greedy(model, prompts, max_tokens)
    return {prompt: model.tokenizer.decode(row, skip_special_tokens=True) for prompt, row in zip(prompts, ids, strict=True)}


@torch.no_grad()
def gives_numbers(model: LanguageModel, text: str) -> bool:
    """Whether its logits are finite: the largest of NaNs is token 0, which may by accident be an answer."""
    ids_BS = torch.tensor([model.tokenizer(text)["input_ids"]], device=model.device)
    return bool(torch.isfinite(model.module(input_ids=ids_BS, use_cache=False).logits).all())


def _nothing(card: Scorecard) -> Scorecard:
    """The same questions, and none answered."""
    shares = {name: 0.0 for name, value in card.to_json().items() if isinstance(value, float)}
    return dataclasses.replace(card, **shares)  # type: ignore[arg-type]


def harmonic_mean(*shares: float | None) -> float | None:
    """Of the shares that were measured; 0 if one of them is."""
    known = [share for share in shares if share is not None]
    if not known:
        return None
    return len(known) / sum(1 / share for share in known) if all(known) else 0.0


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
