"""What edits did: scored on generated text, as a user sees it, or teacher-forced, as the papers report it.

docs/evaluation.md defines every measure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from errata.edit import Edit
from errata.evaluate.answers import same_answer
from errata.evaluate.bootstrap import Interval, OwnedRatio, harmonic_interval, ratio_interval
from errata.evaluate.questions import Question, Questions
from errata.evaluate.teacher_forcing import TeacherForced, teacher_force
from errata.model.language_model import LanguageModel

_NO_NAME = re.compile(r"[^\w .-]+")  # what may not stand in a metric's name

Predictions = Mapping[Question, tuple[int, ...]]
Method = Literal["free", "teacher-forced"]


@dataclass(frozen=True)
class Scorecard:
    """Shares of questions, 0 to 1; None where there were no questions of a kind.

    `efficacy`: edited prompts answered by their targets; `generalisation`: their rephrasings; `locality`: neighbours
    answered as the unedited model answers them, `locality_gold`: answered truly; `portability`: consequences of the edits;
    `retention`: efficacy on the earliest edits, for as long as no later edit replaced them; `retention_every`: on a sample of
    all earlier batches, and `retention_ratio`: on these by what it was right after they were made.

    `token_accuracy` (edited prompts, rephrasings, and neighbours by their true answers) is teacher-forced alone: the mean share
    of an answer's tokens that are ranked first. `portability_by_kind` has the probes that name a kind. `intervals` are
    (low, high) by the names of `to_json`, 95 %, over resampled edits.
    """

    efficacy: float | None
    generalisation: float | None
    locality: float | None
    locality_gold: float | None
    portability: float | None
    retention: float | None
    num_edits: int
    method: Method
    retention_every: float | None = None
    retention_ratio: float | None = None
    token_accuracy: float | None = None
    token_accuracy_generalisation: float | None = None
    token_accuracy_locality: float | None = None
    portability_by_kind: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def harmonic_mean(self) -> float | None:
        """Of efficacy, generalisation and locality."""
        return harmonic_mean(self.efficacy, self.generalisation, self.locality)

    def to_json(self) -> dict[str, Any]:
        """Flat: `portability/KIND`, and `NAME_low` and `NAME_high` for the intervals."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("portability_by_kind", "intervals")}
        flat["harmonic_mean"] = self.harmonic_mean
        flat |= {f"portability/{kind}": share for kind, share in self.portability_by_kind.items()}
        for name, (low, high) in self.intervals.items():
            flat |= {f"{name}_low": low, f"{name}_high": high}
        return flat


def harmonic_mean(*shares: float | None) -> float | None:
    """Of the shares that were measured; 0 if one of them is."""
    known = [share for share in shares if share is not None]
    if not known:
        return None
    return len(known) / sum(1 / share for share in known) if all(known) else 0.0


def score(
    edits: Sequence[Edit],
    answers: Mapping[str, str],
    base_answers: Mapping[str, str] | None,
    first: Sequence[Edit] = (),
    *,
    earlier: Sequence[Edit] = (),
    immediate: Mapping[Question, bool] | None = None,
) -> Scorecard:
    """Compare generated texts by prompt; `base_answers` are the unedited model's, needed for the locality prompts alone: with
    None, `locality` is None.

    `immediate` says of edits in `earlier` whether they were answered right after they had been made. Raises `ValueError` with
    every prompt that has no answer.
    """
    questions = Questions.of(edits, first, earlier)
    missing = [prompt for prompt in questions.prompts if prompt not in answers]
    if base_answers is not None:
        missing += [f"{prompt} (unedited)" for prompt, _ in questions.locality if prompt not in base_answers]
    if missing:
        raise ValueError(f"no answer was given to {len(missing)} prompts: {missing[:5]}")
    right = {(prompt, target): same_answer(answers[prompt], target, target) for prompt, target in questions.all}
    same = None
    if base_answers is not None:
        same = [same_answer(answers[prompt], base_answers[prompt], target) for prompt, target in questions.locality]
    return _scorecard(questions, right, same, "free", immediate or {})


def teacher_forced(
    language_model: LanguageModel,
    edits: Sequence[Edit],
    first: Sequence[Edit] = (),
    base: Predictions | None = None,
    *,
    earlier: Sequence[Edit] = (),
    known: Mapping[Question, TeacherForced] | None = None,
) -> Scorecard:
    """The same shares where each answer token is predicted after the true ones before it, and all must be ranked first.

    The field's usual measure, and the kinder one: nothing here notices an answer that runs on (no end-of-text token is
    asked for). `base` are `predictions` of the unedited model; without them, and without probes, `locality` is None. `known`
    is what the caller has forced through the model already.
    """
    questions = Questions.of(edits, first, earlier)
    found = teacher_force(language_model, questions.all) if known is None else known
    same = None if base is None else [found[question].ranked_first == base[question] for question in questions.locality]
    right = {question: found[question].right for question in questions.all}
    shares = {question: found[question].share_right for question in questions.all}
    return _scorecard(questions, right, same, "teacher-forced", {}, shares)


def predictions(
    language_model: LanguageModel, questions: Sequence[Question], batch_size: int = 64
) -> dict[Question, tuple[int, ...]]:
    """The token ranked first at each position of the answer, given the true answer before it."""
    return {question: made.ranked_first for question, made in teacher_force(language_model, questions, batch_size).items()}


def _scorecard(
    questions: Questions,
    right: Mapping[Question, bool],
    same: Sequence[bool] | None,
    method: Method,
    immediate: Mapping[Question, bool],
    token_shares: Mapping[Question, float] | None = None,
) -> Scorecard:
    """`right` says of each question whether it was answered truly, `same` of each neighbour whether as before."""
    marks = {kind: questions.marks(kind, [right[q] for q in asked]) for kind, asked in questions.kinds.items()}
    marks["locality_gold"] = marks["locality"]
    marks["locality"] = [] if same is None else questions.marks("locality", same)
    marks["retention_ratio"] = [
        (owner, float(right[question]), float(immediate[question]))
        for owner, question in zip(questions.owners["retention_every"], questions.retention_every, strict=True)
        if question in immediate
    ]
    if token_shares is not None:
        tokens = {"token_accuracy": "efficacy", "token_accuracy_generalisation": "generalisation"}
        for name, kind in {**tokens, "token_accuracy_locality": "locality"}.items():
            marks[name] = questions.marks(kind, [token_shares[question] for question in questions.kinds[kind]])
    shares = {name: _ratio(found) for name, found in marks.items()}
    by_kind = _by_kind(questions, right)
    named = {**marks, **{f"portability/{kind}": own for kind, own in by_kind.items()}}
    intervals = {name: ratio_interval(own) for name, own in named.items()}
    intervals["harmonic_mean"] = harmonic_interval([marks[kind] for kind in ("efficacy", "generalisation", "locality")])
    return Scorecard(
        **shares,  # type: ignore[arg-type]
        num_edits=questions.num_edits,
        method=method,
        portability_by_kind={kind: share for kind, own in by_kind.items() if (share := _ratio(own)) is not None},
        intervals={name: found for name, found in intervals.items() if found is not None},
    )


def _by_kind(questions: Questions, right: Mapping[Question, bool]) -> dict[str, list[OwnedRatio]]:
    """The marks of the probes that name a kind."""
    marks = questions.marks("portability", [right[question] for question in questions.portability])
    by_kind: dict[str, list[OwnedRatio]] = {}
    for kind, mark in zip(questions.portability_kinds, marks, strict=True):
        if kind:
            by_kind.setdefault(_NO_NAME.sub("_", kind), []).append(mark)
    return by_kind


def _ratio(marks: Sequence[OwnedRatio]) -> float | None:
    whole = sum(mark[2] for mark in marks)
    return sum(mark[1] for mark in marks) / whole if whole else None
