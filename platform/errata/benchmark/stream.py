"""What every contender of the lifelong benchmark runs: the edits in their batches, and what the unedited model says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from errata.edit import Edit, EditBatch, check_edits
from errata.evaluate.perplexity import Perplexities, perplexities
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import Predictions, predictions
from errata.model.generation import answers
from errata.model.language_model import LanguageModel

CHECKPOINTS = (1, 10, 100, 200, 500, 1000)


@dataclass(frozen=True)
class BenchmarkStream:
    """What every contender runs: the edits in order, in batches of `batch_size` that are cut at each checkpoint.

    With batches of 10 and checkpoints 1, 10, 100, ... the batches are of 1, 9, 10, 10, ... edits: each checkpoint is met
    exactly, and the batches are the same for everybody. The end of the stream is a checkpoint, too. `sentences` state no fact
    and are for the perplexity; `max_answer_tokens` None is one more than the longest answer: what runs on is seen to.

    Of every `retain_every`-th `batch_size` edits retention is measured against their success right after they were made. At
    the end `num_long` of the edited prompts are continued by `long_tokens` tokens, whatever the model would do, for fluency;
    `references`, by edited prompt, are what these texts should speak of, for consistency.
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

    def __post_init__(self) -> None:
        if not self.edits or not self.sentences:
            raise ValueError("a course needs at least one edit and one sentence")
        if min(self.batch_size, self.retain_every, self.long_tokens, *self.checkpoints) < 1 or self.num_long < 0:
            named = {name: getattr(self, name) for name in ("batch_size", "checkpoints", "retain_every", "long_tokens")}
            raise ValueError(f"these are at least 1, and num_long ({self.num_long}) at least 0: {named}")

    @property
    def stops(self) -> tuple[int, ...]:
        """The checkpoints on the way, and the end."""
        return tuple(sorted({stop for stop in self.checkpoints if stop < len(self.edits)} | {len(self.edits)}))

    @property
    def first(self) -> tuple[Edit, ...]:
        """The edits that retention asks for."""
        return self.edits[: self.batch_size]

    def sampled(self, begin: int, end: int) -> tuple[Edit, ...]:
        """Those of the edits from `begin` to `end` whose retention is measured against their immediate success."""
        return tuple(self.edits[i] for i in range(begin, end) if i // self.batch_size % self.retain_every == 0)

    def long_prompts(self) -> list[str]:
        """The prompts that are continued for fluency, spread evenly over the stream."""
        prompts = list(dict.fromkeys(edit.prompt for edit in self.edits))
        count = min(self.num_long, len(prompts))
        return [prompts[i * len(prompts) // count] for i in range(count)]

    def batches(self) -> Iterator[tuple[EditBatch, int]]:
        """Each batch, and the number of edits after it."""
        begin = 0
        while begin < len(self.edits):
            end = min(begin + self.batch_size, next(stop for stop in self.stops if stop > begin))
            yield EditBatch(self.edits[begin:end]), end
            begin = end


@dataclass(frozen=True)
class UneditedAnswers:
    """What the unedited model says on a course: made once, for every contender."""

    answers: Mapping[str, str]
    predictions: Predictions
    perplexities: Perplexities
    max_tokens: int

    @classmethod
    def of(cls, model: LanguageModel, course: BenchmarkStream) -> UneditedAnswers:
        """`model` must hold the base weights. Raises `ValueError` naming the edits and prompts that do not fit its context."""
        check_edits(course.edits, model.tokenizer, model.max_tokens)
        questions = Questions.of(course.edits, course.first)
        longest = max(len(model.tokenizer(f" {answer}")["input_ids"]) for _, answer in questions.all)
        max_tokens = course.max_answer_tokens or longest + 1
        found = answers(model, questions.prompts, max_tokens)
        # A probe that is edited later is one until then.
        probes = list(dict.fromkeys((probe.prompt, probe.target) for edit in course.edits for probe in edit.locality))
        return cls(found, predictions(model, probes), perplexities(model, course.sentences), max_tokens)


def long_texts(model: LanguageModel, course: BenchmarkStream) -> dict[str, str]:
    """What follows each of the course's long prompts; as many tokens for all as its longest prompt leaves room for."""
    prompts = course.long_prompts()
    if not prompts:
        return {}
    room = model.max_tokens - max(len(model.tokenizer(prompt)["input_ids"]) for prompt in prompts)
    num_tokens = min(course.long_tokens, room)
    return answers(model, prompts, num_tokens, min_tokens=num_tokens)
