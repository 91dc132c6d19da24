"""The stream of edits that every benchmarked editor receives, and the answers of the unedited model to its questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from errata.datasets.re_edits import ReEdits, in_rounds, with_re_edits
from errata.edit import Edit, EditBatch
from errata.evaluate.perplexity import Perplexities, perplexities
from errata.evaluate.questions import Questions, question_of
from errata.evaluate.scorecard import Predictions, predictions
from errata.evaluate.transformations import NEED_A_TEMPLATE, TransformedQuestions, check_transformations, in_named_contexts
from errata.model.edit_check import check_edits
from errata.model.generation import greedy_texts, own_answer
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Prompt

CHECKPOINTS = (1, 10, 100, 200, 500, 1000)


@dataclass(frozen=True)
class BenchmarkStream:
    """Edits in order, in batches of `batch_size` that are cut at each checkpoint.

    With batches of 10 and checkpoints 1, 10, 100, ... the batches have 1, 9, 10, 10, ... edits: every checkpoint is met
    exactly, and all editors receive the same batches. The end of the stream is a checkpoint, too.

    `sentences` state no fact and are used for the perplexity. `max_answer_tokens`: generation limit; None means the longest
    target plus one token, so that an answer which does not stop is scored as wrong. Every `retain_every`-th block of
    `batch_size` edits is sampled: its retention is divided by its success immediately after the edits. At the end, `num_long`
    of the edited prompts are continued by `long_tokens` tokens, for fluency; `references`, by edited prompt, are texts on the
    same subject, for consistency. `transformations` are other ways in which all questions are asked, too.
    `rephrasing_kinds` are the kinds of rephrasings, by their texts, where a dataset mixes some: `paraphrase`, `continuation`.
    """

    edits: tuple[Edit, ...]
    sentences: tuple[str, ...]
    batch_size: int = 10
    checkpoints: tuple[int, ...] = CHECKPOINTS
    seed: int = 0
    max_answer_tokens: int | None = None
    retain_every: int = 10
    num_long: int = 10
    long_tokens: int = 40
    references: Mapping[str, str] = field(default_factory=dict)
    transformations: tuple[str, ...] = ()
    rephrasing_kinds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.edits or not self.sentences:
            raise ValueError("a benchmark stream needs at least one edit and one sentence")
        if min(self.batch_size, self.retain_every, self.long_tokens, *self.checkpoints) < 1 or self.num_long < 0:
            named = {name: getattr(self, name) for name in ("batch_size", "checkpoints", "retain_every", "long_tokens")}
            raise ValueError(f"these must be at least 1, and num_long ({self.num_long}) at least 0: {named}")
        check_transformations(self.transformations)

    def re_edited(self, model: LanguageModel, shares: ReEdits) -> BenchmarkStream:
        """Return the stream with a share of re-edits; `model` holds the base weights, whose answers are the truth."""
        if not shares.share:
            return self
        edits = with_re_edits(self.edits, self.batch_size, shares, lambda edit: own_answer(model, edit.prompts[-1]), self.seed)
        return replace(self, edits=tuple(edits))

    def in_rounds(self, model: LanguageModel, num_rounds: int) -> BenchmarkStream:
        """Return a stream that edits each fact, edits it again `num_rounds` times and then posts the truth, round by round.

        The checkpoints are the ends of the rounds. `model` holds the base weights, whose answers are the truth.
        """
        edits = in_rounds(self.edits, num_rounds, lambda edit: own_answer(model, edit.prompts[-1]), self.seed)
        size = len(edits) // (num_rounds + 2)
        return replace(self, edits=tuple(edits), checkpoints=tuple(range(size, len(edits) + 1, size)))

    @property
    def stops(self) -> tuple[int, ...]:
        """The checkpoints inside the stream, and its end."""
        return tuple(sorted({stop for stop in self.checkpoints if stop < len(self.edits)} | {len(self.edits)}))

    @property
    def first(self) -> tuple[Edit, ...]:
        """The edits whose prompts measure retention."""
        return self.edits[: self.batch_size]

    def sampled(self, begin: int, end: int) -> tuple[Edit, ...]:
        """Return the edits from `begin` to `end` whose retention is compared with their immediate success."""
        return tuple(self.edits[i] for i in range(begin, end) if i // self.batch_size % self.retain_every == 0)

    def long_prompts(self) -> list[Prompt]:
        """Return the prompts that are continued for fluency, spaced evenly over the stream."""
        prompts = list(dict.fromkeys(edit.prompts[0] for edit in self.edits))
        count = min(self.num_long, len(prompts))
        return [prompts[i * len(prompts) // count] for i in range(count)]

    def batches(self) -> Iterator[tuple[EditBatch, int]]:
        """Yield each batch, and the number of edits after it. No editor sees the wordings and probes that score the edits."""
        begin = 0
        while begin < len(self.edits):
            end = min(begin + self.batch_size, next(stop for stop in self.stops if stop > begin))
            yield EditBatch(tuple(map(as_shown, self.edits[begin:end]))), end
            begin = end


def as_shown(edit: Edit) -> Edit:
    """Return an edit as an editor is shown it: without the wordings and probes that score it."""
    return replace(edit, rephrasings=(), locality=(), portability=())


@dataclass(frozen=True)
class UneditedAnswers:
    """The answers, predictions and perplexities of the unedited model on a stream, computed once for all editors.

    `max_tokens` is the generation limit of every answer.
    """

    answers: Mapping[Prompt, str]
    predictions: Predictions
    perplexities: Perplexities
    max_tokens: int

    @classmethod
    def of(cls, model: LanguageModel, stream: BenchmarkStream) -> UneditedAnswers:
        """Ask `model`, which must hold the base weights. Raises `ValueError` with edits that do not fit its context."""
        check_edits(stream.edits, model.renderer, model.max_tokens)
        questions = Questions.of(stream.edits, stream.first)
        asked = [(question.prompt, question.answer) for question in questions.all]
        longest = max(len(answer) for _, answer in model.renderer.rows(asked, close=False))
        max_tokens = stream.max_answer_tokens or longest + 1
        transformed = TransformedQuestions.of(stream.transformations, questions, {})
        check_room(model, stream.transformations, transformed, max_tokens)
        # All locality probes: one whose prompt is edited later is a locality probe until then.
        named = [(p, probe) for edit in stream.edits for probe in edit.locality for p in edit.ask(probe.prompt)]
        elsewhere = in_named_contexts(stream.transformations, (prompt for prompt, _ in named))
        found = generated_answers(model, list(dict.fromkeys((*questions.prompts, *elsewhere))), max_tokens)
        probes = list(dict.fromkeys(question_of(probe, prompt) for prompt, probe in named))
        return cls(found, predictions(model, probes), perplexities(model, stream.sentences), max_tokens)


def check_room(model: LanguageModel, names: Sequence[str], transformed: TransformedQuestions, max_tokens: int) -> None:
    """Raise `ValueError` for transformations that the model cannot be asked in, with answers of `max_tokens` tokens."""
    needs_template = [name for name in names if name in NEED_A_TEMPLATE]
    if needs_template and not model.renderer.can_chat:
        raise ValueError(f"{model.path} has no chat template: leave {', '.join(needs_template)} out of transformations")
    longest = max((len(model.renderer.ids(prompt)) for prompt in transformed.prompts), default=0)
    if longest + max_tokens > model.max_tokens:
        raise ValueError(
            f"the transformed prompts have up to {longest} tokens and their answers {max_tokens}, and the model's context has "
            f"{model.max_tokens}: leave out distracted, or others of the transformations {', '.join(names)}"
        )


def long_texts(model: LanguageModel, stream: BenchmarkStream) -> dict[str, str]:
    """Continue the long prompts of the stream, all by as many tokens as its longest prompt leaves room for."""
    prompts = stream.long_prompts()
    if not prompts:
        return {}
    room = model.max_tokens - max(len(model.renderer.ids(prompt)) for prompt in prompts)
    num_tokens = min(stream.long_tokens, room)
    found = generated_answers(model, prompts, num_tokens, min_tokens=num_tokens)
    return {str(prompt): text for prompt, text in found.items()}


def generated_answers(
    model: LanguageModel, prompts: Sequence[Prompt], max_tokens: int, min_tokens: int = 0
) -> dict[Prompt, str]:
    """Generate the greedy text after each prompt, by prompt."""
    return dict(zip(prompts, greedy_texts(model, prompts, max_tokens, min_tokens=min_tokens), strict=True))
