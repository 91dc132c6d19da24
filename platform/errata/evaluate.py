"""What edits did: scored on generated text, as a user sees it, or teacher-forced, as the papers report it."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import torch

from errata.edit import Edit
from errata.encode import IGNORED, Encoded, answer_log_probs, answer_nll, encode
from errata.model import LanguageModel

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_END = re.compile(r"\n|\.(?=\s|$)")  # a period inside a number ends no sentence
_PUNCTUATION = str.maketrans("", "", string.punctuation)

Question = tuple[str, str]  # prompt, answer
Predictions = Mapping[Question, tuple[int, ...]]


def normalise_answer(text: str) -> str:
    """The first sentence or line, as SQuAD compares answers: lower case, without punctuation, articles and extra space."""
    first = _END.split(text.strip(), maxsplit=1)[0]
    return " ".join(_ARTICLES.sub(" ", first.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True)
class Scorecard:
    """Shares of questions, 0 to 1; None where there were no questions of a kind.

    `efficacy`: edited prompts answered by their targets; `generalisation`: their rephrasings; `locality`: neighbours
    answered as the unedited model answers them, `locality_gold`: answered truly; `portability`: consequences of the edits;
    `retention`: efficacy on the earliest edits, for as long as no later edit replaced them.
    """

    efficacy: float | None
    generalisation: float | None
    locality: float | None
    locality_gold: float | None
    portability: float | None
    retention: float | None
    num_edits: int
    method: Literal["free", "teacher-forced"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Questions:
    """(prompt, answer) pairs by kind. Of two edits of one prompt, the later counts."""

    efficacy: tuple[Question, ...]
    generalisation: tuple[Question, ...]
    locality: tuple[Question, ...]
    portability: tuple[Question, ...]
    retention: tuple[Question, ...]
    num_edits: int

    @classmethod
    def of(cls, edits: Sequence[Edit], first: Sequence[Edit] = ()) -> Questions:
        """`first` are the earliest edits ever made, for retention; they need not be among `edits`."""
        latest = {edit.prompt: edit for edit in (*first, *edits)}
        current = list({edit.prompt: edit for edit in edits}.values())
        return cls(
            tuple((edit.prompt, edit.target) for edit in current),
            tuple((rephrasing, edit.target) for edit in current for rephrasing in edit.rephrasings),
            tuple((probe.prompt, probe.target) for edit in current for probe in edit.locality),
            tuple((probe.prompt, probe.target) for edit in current for probe in edit.portability),
            tuple((edit.prompt, edit.target) for edit in first if latest[edit.prompt].target == edit.target),
            len(edits),
        )

    @property
    def all(self) -> tuple[Question, ...]:
        """Each question once."""
        kinds = (self.efficacy, self.generalisation, self.locality, self.portability, self.retention)
        return tuple(dict.fromkeys(question for kind in kinds for question in kind))

    @property
    def prompts(self) -> list[str]:
        """Each prompt once."""
        return list(dict.fromkeys(prompt for prompt, _ in self.all))


def prompts_of(edits: Sequence[Edit], first: Sequence[Edit] = ()) -> list[str]:
    """Every prompt that `score` needs an answer to, once."""
    return Questions.of(edits, first).prompts


def score(
    edits: Sequence[Edit], answers: Mapping[str, str], base_answers: Mapping[str, str], first: Sequence[Edit] = ()
) -> Scorecard:
    """Compare generated texts by prompt; `base_answers` are the unedited model's, needed for the locality prompts alone.

    Raises `ValueError` with every prompt that has no answer.
    """
    questions = Questions.of(edits, first)
    missing = [prompt for prompt in questions.prompts if prompt not in answers]
    missing += [f"{prompt} (unedited)" for prompt, _ in questions.locality if prompt not in base_answers]
    if missing:
        raise ValueError(f"no answer was given to {len(missing)} prompts: {missing[:5]}")

    def right(kind: Iterable[Question]) -> list[bool]:
        return [normalise_answer(answers[prompt]) == normalise_answer(target) for prompt, target in kind]

    same = [normalise_answer(answers[p]) == normalise_answer(base_answers[p]) for p, _ in questions.locality]
    return _scorecard(questions, right, same, "free")


def teacher_forced(
    language_model: LanguageModel, edits: Sequence[Edit], first: Sequence[Edit] = (), base: Predictions | None = None
) -> Scorecard:
    """The same shares where each answer token is predicted after the true ones before it, and all must be ranked first.

    The field's usual measure, and the kinder one: nothing here notices an answer that runs on (no end-of-text token is
    asked for). `base` are `predictions` of the unedited model; without them, and without probes, `locality` is None.
    """
    questions = Questions.of(edits, first)
    predicted = predictions(language_model, questions.all)
    wanted = {question: tuple(_rows(_encode(language_model, [question]))[0]) for question in questions.all}

    def right(kind: Iterable[Question]) -> list[bool]:
        return [predicted[question] == wanted[question] for question in kind]

    same = [] if base is None else [predicted[question] == base[question] for question in questions.locality]
    return _scorecard(questions, right, same, "teacher-forced")


def _scorecard(
    questions: Questions,
    right: Callable[[Iterable[Question]], list[bool]],
    same: list[bool],
    method: Literal["free", "teacher-forced"],
) -> Scorecard:
    """`right` says of each question of a kind whether it was answered truly, `same` of each probe whether as before."""
    return Scorecard(
        efficacy=_share(right(questions.efficacy)),
        generalisation=_share(right(questions.generalisation)),
        locality=_share(same),
        locality_gold=_share(right(questions.locality)),
        portability=_share(right(questions.portability)),
        retention=_share(right(questions.retention)),
        num_edits=questions.num_edits,
        method=method,
    )


@torch.no_grad()
def predictions(
    language_model: LanguageModel, questions: Sequence[Question], batch_size: int = 64
) -> dict[Question, tuple[int, ...]]:
    """The token ranked first at each position of the answer, given the true answer before it."""
    found: dict[Question, tuple[int, ...]] = {}
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        encoded = _encode(language_model, batch)
        ids = iter(answer_log_probs(language_model.module, encoded).argmax(-1).tolist())
        for question, wanted in zip(batch, _rows(encoded), strict=True):
            found[question] = tuple(next(ids) for _ in wanted)
    return found


@torch.no_grad()
def perplexity(language_model: LanguageModel, sentences: Sequence[str], batch_size: int = 64) -> float:
    """Median over sentences of exp(mean -log p of every token but the first). Raises `ValueError` without sentences.

    The median, because one sentence that an edit broke would otherwise hide all others. Infinite where the model's numbers
    are not finite.
    """
    if not sentences:
        raise ValueError("perplexity needs at least one sentence")
    found: list[float] = []
    for start in range(0, len(sentences), batch_size):
        encoded = _whole(language_model, sentences[start : start + batch_size])
        nll_T = answer_nll(answer_log_probs(language_model.module, encoded), encoded)
        counts = (encoded.labels_BS != IGNORED).sum(1).tolist()
        found += [float(part.mean().exp().nan_to_num(math.inf, math.inf)) for part in nll_T.split(counts)]
    return median(found)


def _whole(language_model: LanguageModel, sentences: Sequence[str]) -> Encoded:
    heads, tails = zip(*(sentence.strip().split(" ", 1) for sentence in sentences), strict=True)
    encoded = encode(language_model.tokenizer, heads, tails, language_model.device, eos=False)
    labels_BS = encoded.input_ids_BS.masked_fill(~encoded.attention_mask_BS.bool(), IGNORED)
    labels_BS[:, 0] = IGNORED
    return Encoded(encoded.input_ids_BS, encoded.attention_mask_BS, labels_BS)


def _encode(language_model: LanguageModel, questions: Sequence[Question]) -> Encoded:
    prompts, targets = zip(*questions, strict=True)
    return encode(language_model.tokenizer, prompts, targets, language_model.device, eos=False)


def _rows(encoded: Encoded) -> list[list[int]]:
    """The answer's tokens, question by question."""
    return [row[row != IGNORED].tolist() for row in encoded.labels_BS]


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
