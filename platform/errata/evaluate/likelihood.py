"""Likelihood of the new answer against the old one: ROME's comparison (arXiv 2202.05262, section 3.4).

P is exp of the mean log p of an answer's tokens, which makes answers of different lengths comparable. The comparison is
relative: both answers may be improbable, so it can be won by an edit that no generated text shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any

from errata.edit import Edit, Question
from errata.evaluate.bootstrap import Interval, OwnedRatio, ratio_interval
from errata.evaluate.teacher_forcing import TeacherForced, teacher_force
from errata.model.language_model import LanguageModel
from errata.text.answers import first_sentence, same_answer
from errata.text.dialogue import Prompt

# The edit's prompt, the question whose answer should have the higher likelihood, and the question it is compared with.
Pair = tuple[str, Question, Question]


@dataclass(frozen=True)
class Likelihood:
    """Shares of comparisons won, and magnitudes (mean difference of both P, -1 to 1); None where nothing was compared.

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
        """Flatten to one level, each name prefixed by `likelihood_`."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "intervals"}
        for name, (low, high) in self.intervals.items():
            flat |= {f"{name}_low": low, f"{name}_high": high}
        return {f"likelihood_{name}": value for name, value in flat.items()}


def pairs_of(edits: Sequence[Edit], competitors: Mapping[Prompt, str]) -> dict[str, list[Pair]]:
    """List the comparisons by kind; of two edits of one prompt the later counts.

    `competitors` holds the old answer to each edited prompt: what the unedited model generates, or the gold answer. Its first
    sentence is used. Edits whose old answer is empty or equals the target are left out, and so are neighbours whose answer
    equals the target. Raises `ValueError` with the prompts that `competitors` lacks.
    """
    current = list({edit.prompts: edit for edit in edits}.values())
    if missing := [edit.prompt for edit in current if edit.prompts[0] not in competitors]:
        raise ValueError(f"{len(missing)} prompts have no competing answer: {missing[:5]}; add one for each edited prompt")
    found: dict[str, list[Pair]] = {"efficacy": [], "generalisation": [], "locality": []}
    for edit in current:
        old = first_sentence(competitors[edit.prompts[0]], edit.target).strip()
        if old and not same_answer(old, edit.target, edit.target):
            for kind, texts in (("efficacy", (edit.prompt,)), ("generalisation", edit.rephrasings)):
                asked = [p for text in texts for p in edit.ask(text)]
                found[kind] += [(edit.prompt, edit.question(p), Question(p, old)) for p in asked]
        for probe in edit.locality:
            if not same_answer(probe.target, edit.target, edit.target):
                asked = list(edit.ask(probe.prompt))
                found["locality"] += [(edit.prompt, Question(p, probe.target), Question(p, edit.wording(p))) for p in asked]
    return found


def questions_of(pairs: Mapping[str, Sequence[Pair]]) -> list[Question]:
    """Return the distinct questions of the pairs."""
    return list(dict.fromkeys(question for own in pairs.values() for _, *both in own for question in both))


def likelihood(
    language_model: LanguageModel,
    pairs: Mapping[str, Sequence[Pair]],
    known: Mapping[Question, TeacherForced] | None = None,
) -> Likelihood:
    """Compare the likelihoods of `pairs_of`; `known` are results of `teacher_force` that the caller has already."""
    found = dict(known or {})
    found |= teacher_force(language_model, [question for question in questions_of(pairs) if question not in found])
    numbers: dict[str, Any] = {"intervals": {}}
    for kind, own in pairs.items():
        logs = [(owner, found[better].log_prob, found[worse].log_prob) for owner, better, worse in own]
        won = [OwnedRatio(owner, float(better > worse)) for owner, better, worse in logs]
        gaps = [OwnedRatio(owner, math.exp(better) - math.exp(worse)) for owner, better, worse in logs]
        for name, owned in ((kind, won), (f"{kind}_magnitude", gaps)):
            numbers[name] = fmean(one.numerator for one in owned) if owned else None
            if interval := ratio_interval(owned):
                numbers["intervals"][name] = interval
    return Likelihood(**numbers)
