"""Whether a model now finds the new answer likelier than the old one: ROME's comparison (arXiv 2202.05262, section 3.4).

P is exp of the mean log p of an answer's tokens, so that answers of different lengths compare. The likelier of two answers
wins, be both of them unlikely: an edit that a user never sees may be right here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any

from errata.edit import Edit
from errata.evaluate.answers import first_sentence, same_answer
from errata.evaluate.bootstrap import Interval, ratio_interval
from errata.evaluate.questions import Question
from errata.evaluate.teacher_forcing import TeacherForced, teacher_force
from errata.model.language_model import LanguageModel

Pair = tuple[str, Question, Question]  # the edit's prompt; the question whose answer should be the likelier, and its rival


@dataclass(frozen=True)
class Likelihood:
    """Shares of comparisons won, and magnitudes (mean difference of the two P, -1 to 1); None where nothing was compared.

    `efficacy`: P(new) > P(old) after the edited prompts; `generalisation`: after their rephrasings; `locality`: P(true) >
    P(new) after their neighbours.
    """

    efficacy: float | None
    efficacy_magnitude: float | None
    generalisation: float | None
    generalisation_magnitude: float | None
    locality: float | None
    locality_magnitude: float | None
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Flat, each name with `likelihood_` before it."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "intervals"}
        for name, (low, high) in self.intervals.items():
            flat |= {f"{name}_low": low, f"{name}_high": high}
        return {f"likelihood_{name}": value for name, value in flat.items()}


def pairs_of(edits: Sequence[Edit], competitors: Mapping[str, str]) -> dict[str, list[Pair]]:
    """What is compared, by kind. Of two edits of one prompt, the later counts.

    `competitors` has the old answer to each edited prompt: what the unedited model generates, or the gold answer. Its first
    sentence is taken; an edit without one, or whose target it is, is not compared, nor is a neighbour whose answer is the
    target. Raises `ValueError` with the prompts that `competitors` lacks.
    """
    current = list({edit.prompt: edit for edit in edits}.values())
    if missing := [edit.prompt for edit in current if edit.prompt not in competitors]:
        raise ValueError(f"no competing answer was given to {len(missing)} prompts: {missing[:5]}")
    found: dict[str, list[Pair]] = {"efficacy": [], "generalisation": [], "locality": []}
    for edit in current:
        old = first_sentence(competitors[edit.prompt], edit.target).strip()
        if old and not same_answer(old, edit.target, edit.target):
            found["efficacy"].append((edit.prompt, (edit.prompt, edit.target), (edit.prompt, old)))
            found["generalisation"] += [(edit.prompt, (text, edit.target), (text, old)) for text in edit.rephrasings]
        for probe in edit.locality:
            if not same_answer(probe.target, edit.target, edit.target):
                found["locality"].append((edit.prompt, (probe.prompt, probe.target), (probe.prompt, edit.target)))
    return found


def questions_of(pairs: Mapping[str, Sequence[Pair]]) -> list[Question]:
    """Each question of the pairs once."""
    return list(dict.fromkeys(question for own in pairs.values() for _, *both in own for question in both))


def likelihood(
    language_model: LanguageModel,
    edits: Sequence[Edit],
    competitors: Mapping[str, str],
    known: Mapping[Question, TeacherForced] | None = None,
) -> Likelihood:
    """Raises as `pairs_of`. `known` is what the caller has forced through this model; the others are made here."""
    pairs = pairs_of(edits, competitors)
    found = dict(known or {})
    found |= teacher_force(language_model, [question for question in questions_of(pairs) if question not in found])
    numbers: dict[str, Any] = {"intervals": {}}
    for kind, own in pairs.items():
        logs = [(owner, found[better].log_prob, found[worse].log_prob) for owner, better, worse in own]
        won = [(owner, float(better > worse), 1.0) for owner, better, worse in logs]
        gaps = [(owner, math.exp(better) - math.exp(worse), 1.0) for owner, better, worse in logs]
        for name, marks in ((kind, won), (f"{kind}_magnitude", gaps)):
            numbers[name] = fmean(mark[1] for mark in marks) if marks else None
            if interval := ratio_interval(marks):
                numbers["intervals"][name] = interval
    return Likelihood(**numbers)
