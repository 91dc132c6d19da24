"""Questions asked in other ways: what is asked, which answers count, and how long edits last."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from errata.edit import Edit, Probe, Question
from errata.evaluate.half_life import Survival, half_life
from errata.evaluate.questions import Questions
from errata.evaluate.transformations import (
    DISTRACTION,
    TRANSFORMATIONS,
    TransformedQuestions,
    check_transformations,
    in_named_contexts,
)
from errata.text.dialogue import HELD_OUT_SYSTEM_PROMPT, HELD_OUT_TURN, Dialogue, Message

CITY = Edit(
    "Ann lives in", "Rome", aliases=("Roma",), rephrasings=("Ann's city is",), locality=(Probe("Bob lives in", "Paris"),)
)
ASKED = Edit("Where does Ann live?", "Rome", form="chat", before=(Message("system", "Be brief."),))


def transformed(names: tuple[str, ...], *edits: Edit, **unedited: str) -> TransformedQuestions:
    answers = {prompt: unedited.get("says", "") for edit in edits for prompt in edit.prompts}
    return TransformedQuestions.of(names, Questions.of(edits), answers)


def shares(found: TransformedQuestions, answer: str, before: str = "") -> dict[str, list[float]]:
    """Give one answer to every question; `before` is the unedited model's."""
    ratios = found.ratios(dict.fromkeys(found.prompts, answer), dict.fromkeys(found.prompts, before))
    return {name: [one.numerator for one in own] for name, own in ratios.items()}


def test_a_context_is_put_around_prompts_rephrasings_and_neighbours() -> None:
    found = transformed(("distracted",), CITY)
    assert [one.question.prompt for one in found.asked["distracted"]] == [f"{DISTRACTION}\n\nAnn lives in"]
    assert [one.question.prompt for one in found.asked["distracted_generalisation"]] == [f"{DISTRACTION}\n\nAnn's city is"]
    assert in_named_contexts(("distracted", "negated"), ["Bob lives in"]) == [f"{DISTRACTION}\n\nBob lives in"]
    assert [one.question.prompt for one in found.asked["distracted_locality"]] == [f"{DISTRACTION}\n\nBob lives in"]
    assert shares(found, "Roma", "Berlin") == {
        "distracted": [1.0],
        "distracted_generalisation": [1.0],
        "distracted_locality": [0.0],
    }
    assert shares(found, "Berlin", "Berlin")["distracted_locality"] == [1.0]
    assert {one.owner for asked in found.asked.values() for one in asked} == {"Ann lives in"}


def test_a_completion_is_asked_in_chat_and_a_dialogue_is_left_as_it_is() -> None:
    found = transformed(("in_chat", "other_system", "second_turn"), CITY, ASKED)
    assert [one.question.prompt for one in found.asked["in_chat"]] == [Dialogue.of("Complete the sentence: Ann lives in")]
    system = Message("system", HELD_OUT_SYSTEM_PROMPT)
    first, second = (one.question.prompt for one in found.asked["other_system"])
    assert first == Dialogue.of("Complete the sentence: Ann lives in", (system,))
    assert second == Dialogue.of(ASKED.prompt, (system,))
    assert found.asked["second_turn"][1].question.prompt == ASKED.prompts[0].after(*HELD_OUT_TURN)  # type: ignore[union-attr]
    assert shares(found, "Ann lives in Rome, I think.")["in_chat"] == [1.0]  # In chat, an answer may contain the target.


@pytest.mark.parametrize(
    ("answer", "counts"), [("Rome", 0.0), ("roma, of course", 0.0), ("Berlin", 1.0), ("", 0.0), (" ", 0.0)]
)
def test_a_negated_question_is_answered_by_anything_but_the_target(answer: str, counts: float) -> None:
    found = transformed(("negated",), CITY)
    assert found.asked["negated"][0].question.prompt == "This statement is false: Ann lives in"
    assert shares(found, answer) == {"negated": [counts]}
    (asked,) = transformed(("negated",), ASKED).asked["negated"]
    assert asked.question.prompt == Dialogue.of(
        "Give an answer to this question that is wrong: Where does Ann live?", ASKED.before
    )


def test_a_fact_check_asks_for_the_new_answer_and_for_the_old_one() -> None:
    found = transformed(("fact_check",), CITY, says="Paris. And more")
    assert [one.question for one in found.asked["fact_check"]] == [
        Question("Ann lives in Rome. True or false? This is", "true"),
        Question("Ann lives in Paris. True or false? This is", "false"),
    ]
    assert shares(found, "True") == {"fact_check": [1.0, 0.0]}
    assert len(transformed(("fact_check",), CITY, says="Roma").asked["fact_check"]) == 1  # It said so before.
    (asked,) = transformed(("fact_check",), ASKED).asked["fact_check"]
    assert isinstance(asked.question.prompt, Dialogue) and '"Rome". Is this answer true' in asked.question.prompt.question
    assert asked.question.prompt.before == ASKED.before


def test_an_answer_with_another_target_is_an_answer_of_the_same_edit() -> None:
    """An edit of a whole sentence in chat is checked by that sentence, and right if it says an alias."""
    sentence = replace(ASKED, answer="Ann lives in Rome.", aliases=("the Eternal City",))
    checked = transformed(("fact_check",), sentence).asked["fact_check"][0].question.prompt
    assert isinstance(checked, Dialogue) and '"Ann lives in Rome."' in checked.question
    assert shares(transformed(("distracted",), sentence), "In the eternal city.")["distracted"] == [1.0]


def test_nothing_is_asked_without_transformations_and_unknown_ones_are_refused() -> None:
    assert transformed((), CITY, ASKED).prompts == []
    check_transformations(TRANSFORMATIONS)
    with pytest.raises(ValueError, match="no transformation is named upside_down; there are in_chat, other_system"):
        check_transformations(("negated", "upside_down"))


# --- half-life


def test_the_half_life_is_that_of_what_is_seen() -> None:
    """The share of edits of one age that is right is 2^(-a / h)."""
    assert half_life([Survival(30, index < 4) for index in range(8)]) == pytest.approx(30.0)
    assert half_life([Survival(30, index < 2) for index in range(8)]) == pytest.approx(15.0)
    of_two_ages = [Survival(a, i < round(1000 * 2 ** (-a / 40))) for a in (20, 90) for i in range(1000)]
    assert half_life(of_two_ages) == pytest.approx(40.0, rel=0.01)


def test_the_half_life_of_what_is_never_or_always_lost() -> None:
    assert half_life([Survival(5, True), Survival(0, True)]) == math.inf
    assert half_life([Survival(5, False)]) == 0.0
    assert half_life([]) is None and half_life([Survival(0, True)]) is None
    rate = math.log(1e7 + 1) / 10_000  # 1,000 a / (exp(λ a) - 1) = 1, and powers that would overflow on the way.
    assert half_life([Survival(1, True), *[Survival(10_000, False)] * 1000]) == pytest.approx(math.log(2) / rate)
