"""The scorecard of edits: shares of right answers, by free generation or by teacher forcing.

docs/evaluation.md defines every measure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from errata.edit import Question
from errata.evaluate.bootstrap import Interval, OwnedRatio, harmonic_interval, ratio_interval
from errata.evaluate.questions import Questions
from errata.evaluate.teacher_forcing import TeacherForced, teacher_force
from errata.model.language_model import LanguageModel
from errata.text.answers import same_answer
from errata.text.dialogue import Prompt

_NOT_IN_NAMES = re.compile(r"[^\w .-]+")  # characters that MLflow does not allow in the name of a metric

_OF_SOME = ("other_system", "second_turn", "re_edited", "reverted")

Predictions = Mapping[Question, tuple[int, ...]]
Method = Literal["free", "teacher-forced"]


@dataclass(frozen=True)
class Scorecard:
    """Shares of right answers, 0 to 1, by kind of question; None where no question of a kind was asked.

    `efficacy`: edited prompts answered by their targets. `generalisation`: their rephrasings. `locality`: neighbours answered
    as the unedited model answers them; `locality_gold`: answered truly. `portability`: consequences of the edits, and
    `portability_by_kind` those that name a kind. `retention`: efficacy on the earliest edits, unless a later edit replaced
    them; `retention_every`: on a sample of all earlier batches; `retention_ratio`: the same sample, right now divided by right
    immediately after each batch. `other_system` and `second_turn`: efficacy of edits in chat, under a system prompt and after a
    turn that no training has seen. `re_edited`: efficacy on facts that were edited before, of the newest target; `reverted`:
    the same where that is what the unedited model answers.

    `token_accuracy` and its two companions (rephrasings, neighbours' true answers) exist under teacher forcing only: the mean
    share of an answer's tokens that are the argmax. `intervals` are (low, high) at 95 % over resampled edits, under the names
    of `to_json`.
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
    other_system: float | None = None
    second_turn: float | None = None
    re_edited: float | None = None
    reverted: float | None = None
    token_accuracy: float | None = None
    token_accuracy_generalisation: float | None = None
    token_accuracy_locality: float | None = None
    portability_by_kind: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def harmonic_mean(self) -> float | None:
        """The harmonic mean of efficacy, generalisation and locality."""
        return harmonic_mean(self.efficacy, self.generalisation, self.locality)

    def to_json(self) -> dict[str, Any]:
        """Flatten to one level: `portability/KIND` for the kinds, `NAME_low` and `NAME_high` for the intervals.

        Without edits in chat, the scores of other contexts are left out; without facts that are edited again, theirs.
        """
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("portability_by_kind", "intervals")}
        flat = {name: value for name, value in flat.items() if value is not None or name not in _OF_SOME}
        flat["harmonic_mean"] = self.harmonic_mean
        flat |= {f"portability/{kind}": share for kind, share in self.portability_by_kind.items()}
        for name, (low, high) in self.intervals.items():
            flat |= {f"{name}_low": low, f"{name}_high": high}
        return flat


def harmonic_mean(*shares: float | None) -> float | None:
    """Return the harmonic mean of the shares that are not None; 0 if one of them is 0, None without any."""
    known = [share for share in shares if share is not None]
    if not known:
        return None
    return len(known) / sum(1 / share for share in known) if all(known) else 0.0


def score(
    questions: Questions,
    answers: Mapping[Prompt, str],
    base_answers: Mapping[Prompt, str] | None,
    immediate: Mapping[Question, bool] | None = None,
) -> Scorecard:
    """Score generated texts, given by prompt.

    `base_answers` are the unedited model's, needed for the locality prompts only; with None, `locality` is None. `immediate`
    says for retention questions whether they were answered rightly immediately after their batch. Raises `ValueError` with the
    prompts that have no answer.
    """
    missing = [prompt for prompt in questions.prompts if prompt not in answers]
    if base_answers is not None:
        missing += [f"{prompt} (unedited)" for prompt, *_ in questions.locality if prompt not in base_answers]
    if missing:
        raise ValueError(f"{len(missing)} prompts have no answer to score: {missing[:5]}; generate an answer to each")
    right = {question: question.is_answered_by(answers[question.prompt]) for question in questions.all}
    unchanged = None
    if base_answers is not None:
        unchanged = [same_answer(answers[one.prompt], base_answers[one.prompt], one.answer) for one in questions.locality]
    return _scorecard(questions, right, unchanged, "free", immediate or {})


def teacher_forced(
    language_model: LanguageModel,
    questions: Questions,
    base: Predictions | None = None,
    known: Mapping[Question, TeacherForced] | None = None,
) -> Scorecard:
    """Score by teacher forcing: each answer token is predicted after the true ones before it, and all must be the argmax.

    This is the field's usual measure, and more lenient than generation: the end-of-text token is not asked for, so an answer
    that does not stop still counts. `base` are the `predictions` of the unedited model; with None, `locality` is None. `known`
    are results of `teacher_force` that the caller has already.
    """
    found = teacher_force(language_model, questions.all) if known is None else known
    unchanged = None
    if base is not None:
        unchanged = [found[question].argmax_tokens == base[question] for question in questions.locality]
    right = {question: found[question].right for question in questions.all}
    token_accuracies = {question: found[question].token_accuracy for question in questions.all}
    return _scorecard(questions, right, unchanged, "teacher-forced", {}, token_accuracies)


def predictions(
    language_model: LanguageModel, questions: Sequence[Question], batch_size: int = 64
) -> dict[Question, tuple[int, ...]]:
    """Return the argmax token at each position of the answer, given the true answer before it."""
    return {question: made.argmax_tokens for question, made in teacher_force(language_model, questions, batch_size).items()}


def _scorecard(
    questions: Questions,
    right: Mapping[Question, bool],
    unchanged: Sequence[bool] | None,
    method: Method,
    immediate: Mapping[Question, bool],
    token_accuracies: Mapping[Question, float] | None = None,
) -> Scorecard:
    """Average over questions; `unchanged` says for each neighbour whether its answer agrees with the unedited model's."""
    owned = {kind: questions.owned(kind, [right[q] for q in asked]) for kind, asked in questions.kinds.items()}
    owned["locality_gold"] = owned["locality"]
    owned["locality"] = [] if unchanged is None else questions.owned("locality", unchanged)
    owned["retention_ratio"] = [
        OwnedRatio(owner, float(right[question]), float(immediate[question]))
        for owner, question in zip(questions.owners["retention_every"], questions.retention_every, strict=True)
        if question in immediate
    ]
    if token_accuracies is not None:
        tokens = {"token_accuracy": "efficacy", "token_accuracy_generalisation": "generalisation"}
        for name, kind in {**tokens, "token_accuracy_locality": "locality"}.items():
            owned[name] = questions.owned(kind, [token_accuracies[question] for question in questions.kinds[kind]])
    shares = {name: _ratio(own) for name, own in owned.items()}
    by_kind = _portability_by_kind(questions, right)
    named = {**owned, **{f"portability/{kind}": own for kind, own in by_kind.items()}}
    intervals = {name: ratio_interval(own) for name, own in named.items()}
    intervals["harmonic_mean"] = harmonic_interval([owned[kind] for kind in ("efficacy", "generalisation", "locality")])
    return Scorecard(
        **shares,  # type: ignore[arg-type]
        num_edits=questions.num_edits,
        method=method,
        portability_by_kind={kind: share for kind, own in by_kind.items() if (share := _ratio(own)) is not None},
        intervals={name: found for name, found in intervals.items() if found is not None},
    )


def _portability_by_kind(questions: Questions, right: Mapping[Question, bool]) -> dict[str, list[OwnedRatio]]:
    """Group the consequences that name a kind; characters that a metric's name may not have become `_`."""
    owned = questions.owned("portability", [right[question] for question in questions.portability])
    by_kind: dict[str, list[OwnedRatio]] = {}
    for kind, one in zip(questions.portability_kinds, owned, strict=True):
        if kind:
            by_kind.setdefault(_NOT_IN_NAMES.sub("_", kind), []).append(one)
    return by_kind


def _ratio(owned: Sequence[OwnedRatio]) -> float | None:
    denominator = sum(one.denominator for one in owned)
    return sum(one.numerator for one in owned) / denominator if denominator else None
