"""Question sets asked in other ways: in chat, in other dialogues, behind a distracting text, negated, and as a fact check.

A transformation is an option of an evaluation. One of a context asks the edited prompts, their rephrasings and their neighbours
in it, and each counts as it does without the context. One of the fact itself asks about the edited prompts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from errata.edit import Question
from errata.evaluate.bootstrap import OwnedRatio
from errata.evaluate.questions import Questions
from errata.text.answers import same_answer, says
from errata.text.dialogue import HELD_OUT_SYSTEM_PROMPT, HELD_OUT_TURN, Dialogue, Prompt
from errata.text.rules import is_blank
from errata.text.sentences import first_sentence

# A text that has nothing to do with any edit, and names of its own that a model may answer by mistake.
DISTRACTION = "The old bridge was repaired last summer. Two engineers from Norway measured it in May."
_QUESTION_SIGNS = ("?", "？", "؟")


def in_chat(prompt: Prompt) -> Dialogue:
    """Ask a completion as the user's question; a text that is no question is to be completed."""
    if isinstance(prompt, Dialogue):
        return prompt
    return Dialogue.of(prompt if _is_question(prompt) else f"Complete the sentence: {prompt}")


def distracted(prompt: Prompt) -> Prompt:
    if isinstance(prompt, str):
        return f"{DISTRACTION}\n\n{prompt}"
    return Dialogue.of(f"{DISTRACTION}\n\n{prompt.question}", prompt.before)


def negated(prompt: Prompt) -> Prompt:
    """Ask for what is not so: an edit that answers by its target here answers by a mere association."""
    if isinstance(prompt, Dialogue):
        return Dialogue.of(f"Give an answer to this question that is wrong: {prompt.question}", prompt.before)
    return f"This is a wrong answer. {prompt}" if _is_question(prompt) else f"This statement is false: {prompt}"


def fact_check(prompt: Prompt, answer: str) -> Prompt:
    """Ask if an answer is true."""
    if isinstance(prompt, Dialogue):
        checked = f'The question is "{prompt.question}", and the answer "{answer}".'
        return Dialogue.of(f"{checked} Is this answer true or false? Reply with one word.", prompt.before)
    return f"{prompt} {answer}. True or false? This is"


def _is_question(text: str) -> bool:
    return text.rstrip().endswith(_QUESTION_SIGNS)


# Of contexts: prompts that a context leaves as they are do not count, because they are asked already.
CONTEXTS: Mapping[str, Callable[[Prompt], Prompt]] = {
    "in_chat": in_chat,
    "other_system": lambda prompt: in_chat(prompt).with_system(HELD_OUT_SYSTEM_PROMPT),
    "second_turn": lambda prompt: in_chat(prompt).after(*HELD_OUT_TURN),
    "distracted": distracted,
}
ABOUT_THE_FACT = ("negated", "fact_check")
TRANSFORMATIONS = (*CONTEXTS, *ABOUT_THE_FACT)
NEED_A_TEMPLATE = ("in_chat", "other_system", "second_turn")

Counts = Literal["target", "other", "agreement"]


class TransformedQuestion(NamedTuple):
    """A transformed question: the prompt of the edit that it belongs to, and which answer counts.

    `target`: the question's own answer; `other`: any but that; `agreement`: what the unedited model answers.
    """

    owner: str
    question: Question
    counts: Counts


@dataclass(frozen=True)
class TransformedQuestions:
    """The transformed questions by the name of their measure, such as `distracted` and `distracted_locality`."""

    asked: Mapping[str, tuple[TransformedQuestion, ...]]

    @classmethod
    def of(cls, names: Sequence[str], questions: Questions, unedited: Mapping[Prompt, str]) -> TransformedQuestions:
        """Transform questions in each of the ways `names`.

        `unedited` are the unedited model's answers to the edited prompts. With an answer of it that the edit does not give, a
        fact check is asked twice: the new answer is true, the old one false.
        """
        found: dict[str, tuple[TransformedQuestion, ...]] = {}
        for name in (name for name in CONTEXTS if name in names):
            change = CONTEXTS[name]
            found[name] = tuple(_in_context(questions, "efficacy", change, "target"))
            found[f"{name}_generalisation"] = tuple(_in_context(questions, "generalisation", change, "target"))
            found[f"{name}_locality"] = tuple(_in_context(questions, "locality", change, "agreement"))
        edited = list(zip(questions.owners["efficacy"], questions.efficacy, strict=True))
        if "negated" in names:
            found["negated"] = tuple(
                TransformedQuestion(owner, q._replace(prompt=negated(q.prompt)), "other") for owner, q in edited
            )
        if "fact_check" in names:
            found["fact_check"] = tuple(one for owner, q in edited for one in _fact_checks(owner, q, unedited))
        return cls(found)

    @property
    def prompts(self) -> list[Prompt]:
        """The distinct prompts, each of which `ratios` needs an answer to."""
        return list(dict.fromkeys(one.question.prompt for asked in self.asked.values() for one in asked))

    def ratios(self, answers: Mapping[Prompt, str], unedited: Mapping[Prompt, str]) -> dict[str, list[OwnedRatio]]:
        """Say for each question of each measure if its answer counts, as 1 or 0; the texts are given by prompt.

        `unedited` needs the unedited model's answers to the neighbours in each context (`in_named_contexts`).
        """

        def counts(one: TransformedQuestion) -> bool:
            return _counts(one, answers[one.question.prompt], unedited.get(one.question.prompt, ""))

        return {name: [OwnedRatio(one.owner, float(counts(one))) for one in asked] for name, asked in self.asked.items()}


def in_named_contexts(names: Sequence[str], prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return prompts in each of the contexts among `names`."""
    return [CONTEXTS[name](prompt) for prompt in prompts for name in names if name in CONTEXTS]


def check_transformations(names: Iterable[str]) -> None:
    """Raise `ValueError` for a name that is no transformation."""
    if unknown := [name for name in names if name not in TRANSFORMATIONS]:
        raise ValueError(f"no transformation is named {', '.join(unknown)}; there are {', '.join(TRANSFORMATIONS)}")


def _in_context(
    questions: Questions, kind: str, change: Callable[[Prompt], Prompt], counts: Counts
) -> Iterator[TransformedQuestion]:
    for owner, question in zip(questions.owners[kind], questions.kinds[kind], strict=True):
        prompt = change(question.prompt)
        if prompt != question.prompt:
            yield TransformedQuestion(owner, question._replace(prompt=prompt), counts)


def _fact_checks(owner: str, question: Question, unedited: Mapping[Prompt, str]) -> Iterator[TransformedQuestion]:
    yield TransformedQuestion(owner, Question(fact_check(question.prompt, question.answer), "true"), "target")
    before = first_sentence(unedited.get(question.prompt, ""), question.answer).strip(" .")
    if not is_blank(before) and not question.is_answered_by(before):
        yield TransformedQuestion(owner, Question(fact_check(question.prompt, before), "false"), "target")


def _counts(one: TransformedQuestion, text: str, unedited: str) -> bool:
    question = one.question
    if one.counts == "agreement":
        return same_answer(text, unedited, question.answer)
    if one.counts == "target":
        return question.is_answered_by(text)
    wanted = (question.answer, *question.targets)
    return not is_blank(text) and not any(says(first_sentence(text, each), each) for each in wanted)
