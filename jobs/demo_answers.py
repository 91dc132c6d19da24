"""Questions of the demo to a real language model in chat, and the scores of its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from errata.client.responses import EditOut
from errata.edit import Edit, Question
from errata.testbed.fact import Fact
from errata.testbed.known_facts import question_of
from errata.text.dialogue import HELD_OUT_SYSTEM_PROMPT, HELD_OUT_TURN, Dialogue, Prompt

FORMS = {
    "question": "the corrected question",
    "phrasing": "in words that no training used",
    "other_system": "under another system prompt",
    "second_turn": "as the second question of a dialogue",
}
TWO_HOP = "two_hop"  # what follows from the correction: the continent or the currency of a city's country
EVERY = 2  # Of so many edits, one is also asked in the other forms.
NUM_FIRST = 50  # edits whose retention is scored
Answers = Mapping[Prompt, str]


def forms_of(edit: Edit) -> dict[str, Question]:
    """Return the question of an edit in each of `FORMS`; no training has seen the last three."""
    (asked,) = (prompt for prompt in edit.prompts if isinstance(prompt, Dialogue))
    prompts: tuple[Dialogue, ...] = (
        asked,
        Dialogue.of(edit.rephrasings[0]),
        asked.with_system(HELD_OUT_SYSTEM_PROMPT),
        asked.after(*HELD_OUT_TURN),
    )
    return {form: edit.question(prompt) for form, prompt in zip(FORMS, prompts, strict=True)}


@dataclass
class FactSearch:
    """Facts that the unedited model gets wrong, and those that it gets right, up to the number wanted of each."""

    num_wrong: int
    num_right: int
    wrong: list[Fact] = field(default_factory=list)
    right: list[Fact] = field(default_factory=list)
    answers: dict[Prompt, str] = field(default_factory=dict)

    @property
    def num_asked(self) -> int:
        return len(self.answers)

    @property
    def is_over(self) -> bool:
        return len(self.wrong) >= self.num_wrong and len(self.right) >= self.num_right

    def add(self, facts: Sequence[Fact], answers: Answers) -> None:
        """Sort facts by the answers to their questions."""
        self.answers |= answers
        for fact in facts:
            question = question_of(fact)
            is_right = question.is_answered_by(answers[question.prompt])
            found, limit = (self.right, self.num_right) if is_right else (self.wrong, self.num_wrong)
            if len(found) < limit:
                found.append(fact)


@dataclass(frozen=True)
class AskedFacts:
    """Edits of facts that the model got wrong, their questions, and facts that it must keep.

    One of `EVERY` edits is also asked in the other forms.
    """

    edits: tuple[Edit, ...]
    forms: Mapping[str, Sequence[Question]]
    kept: tuple[Question, ...]

    @classmethod
    def about(cls, edits: Sequence[Edit], right: Sequence[Fact]) -> AskedFacts:
        asked = [forms_of(edit) for edit in edits]
        forms = {form: [each[form] for each in (asked if form == "question" else asked[::EVERY])] for form in FORMS}
        forms[TWO_HOP] = [consequence for edit in edits[::EVERY] for consequence in first_consequence(edit)]
        return cls(tuple(edits), forms, tuple(map(question_of, right)))

    @property
    def every(self) -> list[Prompt]:
        questions = [*(question for form in self.forms.values() for question in form), *self.kept]
        return list(dict.fromkeys(question.prompt for question in questions))

    def some(self, number: int) -> list[Prompt]:
        """Take so many prompts: a fifth each from the four forms, about different edits, and from what must be kept."""
        share = number // (len(FORMS) + 1)
        chosen = [question for place, form in enumerate(FORMS) for question in self.forms[form][place :: len(FORMS)][:share]]
        return list(dict.fromkeys(question.prompt for question in (*chosen, *self.kept[:share])))

    def scores(self, answers: Answers) -> dict[str, float | None]:
        """Compute the share of right answers in each form, and among the facts to keep; None where nothing is asked."""
        found = {form: share_right(questions, answers) for form, questions in self.forms.items()}
        return found | {"kept": share_right(self.kept, answers), "retention": self._retention(answers)}

    def _retention(self, answers: Answers) -> float | None:
        """Compute the share of right answers to the first edits' questions, in a stream that goes on after them."""
        first = self.forms["question"][:NUM_FIRST]
        return share_right(first, answers) if len(self.edits) > NUM_FIRST else None


def first_consequence(edit: Edit) -> list[Question]:
    """Return the first thing that follows from an edit, as a question in chat; none if nothing is known to."""
    return [Question(Dialogue.of(probe.prompt), probe.target, (probe.target,)) for probe in edit.portability[:1]]


def share_right(questions: Sequence[Question], answers: Answers) -> float | None:
    right = [question.is_answered_by(answers[question.prompt]) for question in questions]
    return sum(right) / len(right) if right else None


def answer_fields(asked: AskedFacts, before: Answers, after: Answers, outcomes: Sequence[EditOut]) -> dict[str, Any]:
    """Collect the scores after the edits and, with `_before`, of the unedited model, and what became of the edits.

    `outcomes` are in the order of the edits. A rejected edit counts in every score; `applied_unanswered` are the applied ones
    whose question is not answered right at the end.
    """
    after_edits, unedited = asked.scores(after), asked.scores(before)
    states = Counter(made["state"] for made in outcomes)
    applied = [q for q, made in zip(asked.forms["question"], outcomes, strict=True) if made["state"] == "applied"]
    return {
        **after_edits,
        **{f"{name}_before": score for name, score in unedited.items()},
        "edits": len(asked.edits),
        "states": dict(states),
        "applied_unanswered": sum(not question.is_answered_by(after[question.prompt]) for question in applied),
        "rejected": states["rejected"],
        "rejections": [rejection(made) for made in outcomes if made["state"] == "rejected"],
    }


def rejection(made: EditOut) -> dict[str, str]:
    """Describe a rejected edit: its question, the reason, and what the model says where it was asked."""
    asked = made["edit"].get("question") or made["edit"].get("prompt", "")
    found = {"question": asked, "code": made.get("code", ""), "reason": made.get("reason", "")}
    return found | ({"says": made["says"]} if "says" in made else {})
