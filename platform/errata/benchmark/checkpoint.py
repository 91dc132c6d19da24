"""The scores of a model at a checkpoint of the stream, one function for each group of measures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from errata.benchmark.results import MEASURES, Protocol
from errata.benchmark.stream import BenchmarkStream, UneditedAnswers, generated_answers, long_texts
from errata.delta.accumulator import EditedModel
from errata.edit import Question
from errata.evaluate.bootstrap import Interval, OwnedRatio, ratio_interval
from errata.evaluate.fluency import consistencies, fluencies
from errata.evaluate.half_life import Survival, half_life
from errata.evaluate.likelihood import Likelihood, likelihood, pairs_of, questions_of
from errata.evaluate.perplexity import perplexities
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import Scorecard, score, teacher_forced
from errata.evaluate.teacher_forcing import teacher_force
from errata.evaluate.transformations import TransformedQuestions
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Prompt


@dataclass(frozen=True)
class Scores:
    """Values of some measures by name, and the intervals of those that have one."""

    values: Mapping[str, float | None] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    def __or__(self, other: Scores) -> Scores:
        return Scores({**self.values, **other.values}, {**self.intervals, **other.intervals})


def question_scores(
    model: LanguageModel,
    stream: BenchmarkStream,
    unedited: UneditedAnswers,
    done: int,
    immediate: Mapping[Question, bool],
) -> tuple[Scores, Questions, dict[Prompt, str]]:
    """Score the questions of the first `done` edits: by generation, teacher forcing and likelihood.

    `immediate` says which sampled edits were answered rightly immediately after their batch. Also returns the questions and
    the generated answers by prompt.
    """
    edits = stream.edits[:done]
    questions = Questions.of(edits, stream.first[:done], stream.sampled(0, done), unedited.answers)
    transformed = TransformedQuestions.of(stream.transformations, questions, unedited.answers)
    asked = list(dict.fromkeys((*questions.prompts, *transformed.prompts)))
    generated = generated_answers(model, asked, unedited.max_tokens)
    free = score(questions, generated, unedited.answers, immediate)
    pairs = pairs_of(edits, unedited.answers)
    known = teacher_force(model, list(dict.fromkeys((*questions.all, *questions_of(pairs)))))
    forced = teacher_forced(model, questions, unedited.predictions, known)
    compared = likelihood(model, pairs, known)
    if not has_finite_logits(model, stream.sentences[0]):
        free, forced, generated = _all_wrong(free), _all_wrong(forced), dict.fromkeys(generated, "")
    scores = _from_card(free, "free", str) | _from_card(forced, "teacher-forced", lambda name: name.removesuffix("_tf"))
    scores |= _from_card(compared, "likelihood", lambda name: name.removeprefix("likelihood_"))
    scores |= _from_ratios(transformed.ratios(generated, unedited.answers))
    scores |= _from_ratios(_by_kind(questions, generated, stream.rephrasing_kinds))
    return scores, questions, generated


def _from_card(card: Scorecard | Likelihood, protocol: Protocol, field_of: Callable[[str], str]) -> Scores:
    """Take the measures of one protocol from a scorecard; `field_of` gives the field that holds a measure."""
    fields = {measure.name: field_of(measure.name) for measure in MEASURES if measure.protocol == protocol}
    return Scores(
        {name: getattr(card, own) for name, own in fields.items()},
        {name: card.intervals[own] for name, own in fields.items() if own in card.intervals},
    )


def _from_ratios(owned: Mapping[str, Sequence[OwnedRatio]]) -> Scores:
    """Average the shares of some measures over their questions; a measure without a question is left out."""
    known = {name: ratios for name, ratios in owned.items() if sum(one.denominator for one in ratios)}
    intervals = {name: ratio_interval(ratios) for name, ratios in known.items()}
    return Scores(
        {name: sum(o.numerator for o in own) / sum(o.denominator for o in own) for name, own in known.items()},
        {name: interval for name, interval in intervals.items() if interval is not None},
    )


def _by_kind(questions: Questions, generated: Mapping[Prompt, str], kinds: Mapping[str, str]) -> dict[str, list[OwnedRatio]]:
    """Group the answers to rephrasings by the kinds that these have."""
    found: dict[str, list[OwnedRatio]] = {}
    for owner, one in zip(questions.owners["generalisation"], questions.generalisation, strict=True):
        kind = kinds.get(one.prompt if isinstance(one.prompt, str) else one.prompt.question)
        if kind is not None:
            right = OwnedRatio(owner, float(one.is_answered_by(generated[one.prompt])))
            found.setdefault(f"generalisation_{kind}", []).append(right)
    return found


def lifetime_scores(
    questions: Questions, generated: Mapping[Prompt, str], immediate: Mapping[Question, bool], made_at: Mapping[Question, int]
) -> Scores:
    """Score how the sampled edits were answered immediately after their batches, and how long they last.

    `made_at` counts the edits up to each of them, so that an edit's age is the number of edits since; superseded edits do not
    count.
    """
    asked = zip(questions.owners["retention_every"], questions.retention_every, strict=True)
    known = [(owner, one) for owner, one in asked if one in immediate]
    scores = _from_ratios({"immediate": [OwnedRatio(owner, float(immediate[one])) for owner, one in known]})
    survivals = [
        Survival(questions.num_edits - made_at[one], one.is_answered_by(generated[one.prompt]))
        for _, one in known
        if immediate[one]
    ]
    return scores | Scores({"half_life": half_life(survivals)})


def perplexity_scores(model: LanguageModel, stream: BenchmarkStream, unedited: UneditedAnswers) -> Scores:
    """Compare the perplexities of the stream's sentences with those of the unedited model."""
    now, before = perplexities(model, stream.sentences), unedited.perplexities
    return Scores(now.ratios_to(before), now.intervals_to(before))


def long_text_scores(model: LanguageModel, stream: BenchmarkStream) -> Scores:
    """Score long continuations: fluency, and consistency where there are reference texts."""
    texts = long_texts(model, stream)
    found = {"fluency": fluencies(texts), "consistency": consistencies(texts, stream.references)}
    owned = {name: [OwnedRatio(*one) for one in own.items()] for name, own in found.items() if own}
    intervals = {name: ratio_interval(own) for name, own in owned.items()}
    return Scores(
        {name: fmean(one.numerator for one in own) for name, own in owned.items()},
        {name: interval for name, interval in intervals.items() if interval is not None},
    )


def norm_scores(edited: EditedModel) -> Scores:
    """Compute |W| / |W0| and |W - W0| / |W0| of the matrix where each is largest; infinite if not finite."""
    accumulator = edited.accumulator
    found = [(1.0, 0.0)] if not accumulator.base_OI else []
    for name, base_OI in accumulator.base_OI.items():
        weight_OI, base_OI = accumulator.weight(name).double(), base_OI.double()
        ratios = torch.stack([weight_OI.norm(), (weight_OI - base_OI).norm()]) / base_OI.norm()
        growth, change = ratios.nan_to_num(math.inf, math.inf).tolist()
        found.append((growth, change))
    return Scores({"norm_growth": max(growth for growth, _ in found), "delta_norm": max(change for _, change in found)})


@torch.no_grad()
def has_finite_logits(model: LanguageModel, text: str) -> bool:
    """Check that the logits are finite: among NaNs token 0 is the argmax, which may by accident be an answer."""
    ids_BS = torch.tensor([model.tokenizer(text)["input_ids"]], device=model.device)
    return bool(torch.isfinite(model.module(input_ids=ids_BS, use_cache=False).logits).all())


def _all_wrong(card: Scorecard) -> Scorecard:
    """Return the card of the same questions with every answer wrong."""
    shares: dict[str, Any] = {f.name: 0.0 for f in dataclasses.fields(card) if isinstance(getattr(card, f.name), float)}
    by_kind, intervals = dict.fromkeys(card.portability_by_kind, 0.0), dict.fromkeys(card.intervals, (0.0, 0.0))
    return dataclasses.replace(card, **shares, portability_by_kind=by_kind, intervals=intervals)
