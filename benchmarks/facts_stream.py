"""Corrections of true facts that the default model gets wrong, and everything that is asked after them.

What is posted is what a user posts: question, target with its other names, and subject. Each editor receives the same edits,
with the answers that Errata composes of what the model says; no editor sees another wording of a question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from benchmarks.facts_progress import in_parts, say
from errata.datasets.re_edits import ReEdits, with_re_edits
from errata.edit import Edit, Question
from errata.evaluate.questions import Questions
from errata.evaluate.transformations import TransformedQuestion, TransformedQuestions, distracted, negated
from errata.model.composing import composed
from errata.model.generation import own_answer
from errata.model.language_model import LanguageModel
from errata.testbed.fact import Fact
from errata.testbed.known_facts import AT_ONCE, KnownFacts, question_of
from errata.testbed.world_facts import WorldFacts
from errata.text.dialogue import Dialogue, Prompt
from jobs.demo_answers import EVERY, FORMS, NUM_FIRST, TWO_HOP, FactSearch, first_consequence, forms_of
from jobs.demo_facts import edits_of, facts_in_random_order
from jobs.demo_run import BATCH_SIZE
from jobs.plans import smollm2

Keep = Callable[[Callable[[], list[dict[str, Any]]]], list[dict[str, Any]]]
SMALLER_CITIES = WorldFacts(min_city_population=100_000)  # for long streams, and for questions that no stream is about
CHATS = (
    "Write a short poem about rain.",
    "Give me three tips for learning a language.",
    "Explain why the sky looks red in the evening.",
    "What should I cook with rice, eggs and spinach?",
    "Write a polite message that moves a meeting to Friday.",
    "What is the difference between a list and a tuple in Python?",
    "How do I keep a bicycle chain clean?",
    "Tell me a joke about a penguin.",
    "Summarise in one sentence what photosynthesis is.",
    "Give me a name for a small bakery.",
    "What is 17 times 6?",
    "How can I fall asleep more easily?",
    "Write the beginning of a story about a lighthouse keeper.",
    "Which is healthier, walking or swimming?",
    "Translate into French: good morning, my friend.",
    "What does the proverb about the early bird mean?",
    "List four things to take on a camping trip.",
    "How does a refrigerator work?",
    "Recommend a present for a ten-year-old who likes dinosaurs.",
    "Make this friendlier: send me the report today.",
)


@dataclass(frozen=True)
class StreamSizes:
    """`edits` corrections, `right` facts to keep, `unrelated` other questions; all of them depend on `seed`.

    The share `re_edits` of the edits changes an earlier one again. With `has_more_forms` the questions are also asked behind a
    distracting text and negated, and other relations of the same subjects are asked. `part` is the corpus' part of the facts.
    """

    edits: int
    right: int = 50
    unrelated: int = 200
    re_edits: float = 0.0
    seed: int = 0
    has_more_forms: bool = False
    part: str = "test"


@dataclass(frozen=True)
class CorrectionStream:
    """`edits` in their order; `asked` by the name of a measure; `unrelated` prompts are about no edited subject."""

    edits: tuple[Edit, ...]
    asked: TransformedQuestions
    unrelated: tuple[Prompt, ...]

    @classmethod
    def of(cls, model: LanguageModel, sizes: StreamSizes, keep: Keep = lambda make: make()) -> CorrectionStream:
        """Find facts that the model, at its base weights, gets wrong, and facts that it gets right.

        `keep` returns the edits as JSON, which it makes or has kept from an earlier time. Raises `ValueError` if there are not
        so many facts that the model gets wrong.
        """
        plan, known = replace(smollm2(), seed=sizes.seed), KnownFacts.beside(model)
        facts = list(facts_of(sizes.part, sizes.seed))
        search = found_among(facts, known, FactSearch(sizes.edits, sizes.right))
        posted = [replace(edit, answer=None) for edit in edits_of(plan, search.wrong, sizes.part)]
        said = {fact.question(): known.answers[fact.key] for fact in search.wrong}

        def make() -> list[dict[str, Any]]:
            shares = ReEdits(sizes.re_edits)
            edits = with_re_edits(posted, BATCH_SIZE, shares, lambda edit: own_answer(model, edit.prompts[-1]), sizes.seed)
            parts = in_parts(edits, AT_ONCE, "answers composed")
            return [edit.to_json() for part in parts for edit in composed(model, part, [said[edit.prompt] for edit in part])]

        edits = [Edit.from_json(each) for each in keep(make)]
        unedited = {edit.prompts[-1]: said[edit.prompt] for edit in edits}
        others = Others(facts, (*search.wrong, *search.right), sizes)
        asked = questions_after(edits, unedited, search.right, others.about(search.wrong) if sizes.has_more_forms else None)
        return cls(tuple(edits), asked, others.unrelated)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every distinct prompt that is asked at the end."""
        return list(dict.fromkeys((*self.asked.prompts, *self.unrelated)))

    @cached_property
    def owners(self) -> dict[Prompt, Edit]:
        """The correction that each prompt about one is to be answered by."""
        latest = {edit.prompt: edit for edit in self.edits}
        asked = [(one, latest[one.owner]) for each in self.asked.asked.values() for one in each if one.owner in latest]
        return {one.question.prompt: edit for one, edit in asked if one.counts != "agreement"}


def facts_of(part: str, seed: int) -> Iterator[Fact]:
    """Yield the facts of a part in the order of `make demo`, and then the countries of smaller cities."""
    first = facts_in_random_order(replace(smollm2(), seed=seed), part)
    yield from first
    asked = {fact.question() for fact in first}
    more = [fact for fact in SMALLER_CITIES.facts(part) if fact.question() not in asked]
    random.Random(f"{seed} more").shuffle(more)
    yield from {fact.question(): fact for fact in more}.values()


def found_among(facts: Sequence[Fact], known: KnownFacts, search: FactSearch) -> FactSearch:
    """Ask the model until enough of what it gets wrong and right is found."""
    for begin in range(0, len(facts), AT_ONCE):
        part = facts[begin : begin + AT_ONCE]
        known.ask(part)
        search.add(part, {question_of(fact).prompt: known.answers[fact.key] for fact in part})
        say(f"asked {search.num_asked}: {len(search.wrong)} wrong, {len(search.right)} right")
        if search.is_over:
            break
    if len(search.wrong) < search.num_wrong:
        raise ValueError(f"the model gets {len(search.wrong)} of {len(facts)} facts wrong: ask for at most as many edits")
    return search


@dataclass(frozen=True)
class Others:
    """The facts of which no edit is made, and which need not be kept: `used` are those."""

    facts: Sequence[Fact]
    used: Sequence[Fact]
    sizes: StreamSizes

    @cached_property
    def unrelated(self) -> tuple[Prompt, ...]:
        """Questions about other subjects, right or wrong before, half of them of any relation; and plain requests."""
        subjects = {fact.subject for fact in self.used}
        free = [fact for fact in self.facts if fact.subject not in subjects]
        half = (self.sizes.unrelated + 1) // 2
        # Behind the first facts come those of smaller cities alone.
        chosen = [*free[:half], *free[half:][::-1]][: self.sizes.unrelated]
        return tuple(dict.fromkeys([question_of(fact).prompt for fact in chosen] + [Dialogue.of(text) for text in CHATS]))

    def about(self, edited: Sequence[Fact]) -> list[tuple[Fact, Question]]:
        """Pair edited facts with a question about another relation of the same subject, if one of its facts is not edited."""
        of_subject: dict[str, list[Fact]] = {}
        for fact in frozenset(self.facts) - frozenset(edited):
            of_subject.setdefault(fact.subject, []).append(fact)
        known = {subject: min(facts, key=lambda fact: fact.key) for subject, facts in of_subject.items()}
        return [(fact, question_of(known[fact.subject])) for fact in edited if fact.subject in known]


def questions_after(
    edits: Sequence[Edit],
    unedited: Mapping[Prompt, str],
    right: Sequence[Fact],
    same_subject: Sequence[tuple[Fact, Question]] | None = None,
) -> TransformedQuestions:
    """Collect what is asked after all edits, by measure. Of two edits of a fact, the later counts.

    What the model said before (`unedited`) is a whole sentence: reverted facts are asked as they were corrected, in no other
    form. With `same_subject` the further forms are asked, too.
    """
    latest: dict[str, Edit] = {}
    for edit in edits:
        latest.pop(edit.prompt, None)  # An edit made again is as young as its last correction.
        latest[edit.prompt] = edit
    again = Questions.of(edits, unedited=unedited)
    reverted = frozenset(again.owners["reverted"])
    held = [edit for edit in latest.values() if edit.prompt not in reverted]
    forms, some = [(edit, forms_of(edit)) for edit in held], held[::EVERY]
    asked = {
        form: [_asked(edit, each[form]) for edit, each in (forms if form == "question" else forms[::EVERY])] for form in FORMS
    }
    asked[TWO_HOP] = [_asked(edit, question) for edit in some for question in first_consequence(edit)]
    asked["kept"] = [TransformedQuestion("", question_of(fact), "target") for fact in right]
    asked["retention"] = asked["question"][:NUM_FIRST] if len(edits) > NUM_FIRST else []
    for name in ("re_edited", "reverted"):
        pairs = zip(again.owners[name], again.kinds[name], strict=True)
        asked[name] = [TransformedQuestion(owner, question, "target") for owner, question in pairs]
    if same_subject is not None:
        questions = [(edit, edit.question(edit.prompts[-1])) for edit in some]
        asked["distracted"] = [_asked(edit, q._replace(prompt=distracted(q.prompt))) for edit, q in questions]
        asked["negated"] = [
            TransformedQuestion(edit.prompt, q._replace(prompt=negated(q.prompt)), "other") for edit, q in questions
        ]
        beside = [(fact.question(), question) for fact, question in same_subject if fact.question() in latest]
        asked["same_subject"] = [TransformedQuestion(owner, question, "agreement") for owner, question in beside]
    return TransformedQuestions({name: tuple(each) for name, each in asked.items()})


def _asked(edit: Edit, question: Question) -> TransformedQuestion:
    return TransformedQuestion(edit.prompt, question, "target")
