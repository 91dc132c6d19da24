"""Questions asked after true corrections: every form of each, of the latest edit of a fact, and other facts beside them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.facts_stream import CHATS, CorrectionStream, Others, StreamSizes, facts_of, found_among, questions_after
from errata.edit import Edit
from errata.testbed.fact import Fact
from errata.testbed.known_facts import question_of
from errata.text.dialogue import Dialogue, Prompt
from jobs.demo_answers import FORMS, FactSearch
from tests.unit.jobs.test_demo_answers import FACTS, edit_of

SAID: dict[Prompt, str] = {question_of(fact).prompt: "It is in Spain." for fact in FACTS}


@pytest.fixture(autouse=True)
def every_edit_in_each_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.facts_stream.EVERY", 1)


def again(fact: Fact, target: str) -> Edit:
    return replace(edit_of(fact), target=target, answer=f"It is in {target}.")


def test_each_form_of_each_correction_is_asked() -> None:
    edits = [edit_of(fact) for fact in FACTS[:2]]
    asked = questions_after(edits, SAID, FACTS[2:3]).asked
    assert [len(asked[form]) for form in FORMS] == [2] * 4 and len(asked["kept"]) == 1
    assert not any(asked[name] for name in ("retention", "re_edited", "reverted", "two_hop")) and "negated" not in asked
    more = questions_after(edits, SAID, [], [(FACTS[0], question_of(FACTS[3]))]).asked
    assert [(len(more[name]), more[name][0].counts) for name in ("distracted", "negated", "same_subject")] == [
        (2, "target"),
        (2, "other"),
        (1, "agreement"),
    ]


def test_of_two_edits_of_a_fact_the_later_counts() -> None:
    edits = [edit_of(FACTS[0]), edit_of(FACTS[1]), again(FACTS[0], "Peru"), again(FACTS[1], "Spain")]
    asked = questions_after(edits, SAID, [])
    assert [one.question.targets for one in asked.asked["question"]] == [("Peru",)]
    assert [one.question.targets for one in asked.asked["re_edited"]] == [("Peru",)]
    assert [one.question.targets for one in asked.asked["reverted"]] == [("Spain",)], "the model said so before the edits"
    scored = asked.ratios(dict.fromkeys(asked.prompts, "It is in Peru."), SAID)
    assert [one.numerator for one in scored["phrasing"]] == [1.0] and [one.numerator for one in scored["reverted"]] == [0.0]
    stream = CorrectionStream(tuple(edits), asked, ())
    assert stream.owners[question_of(FACTS[0]).prompt].target == "Peru"


def test_a_prompt_that_no_correction_is_to_answer_has_no_owner() -> None:
    edits = [edit_of(FACTS[0])]
    stream = CorrectionStream(tuple(edits), questions_after(edits, SAID, FACTS[1:2], [(FACTS[0], question_of(FACTS[2]))]), ())
    other, kept = question_of(FACTS[2]).prompt, question_of(FACTS[1]).prompt
    assert {other, kept} <= set(stream.prompts) and not {other, kept} & set(stream.owners)
    assert len(stream.owners) == 6, "four forms, behind a distracting text, and negated"


def test_the_first_edits_that_still_hold_are_the_retained_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.facts_stream.NUM_FIRST", 1)
    edits = [edit_of(FACTS[0]), edit_of(FACTS[1]), again(FACTS[0], "Peru")]
    assert [one.owner for one in questions_after(edits, SAID, []).asked["retention"]] == [FACTS[1].question()]


def test_unrelated_questions_are_about_no_edited_subject() -> None:
    capital = Fact("Kano", "capital", "Kano City")
    others = Others([*FACTS, capital], FACTS[:2], StreamSizes(2, unrelated=2))
    assert others.unrelated == (
        *(question_of(fact).prompt for fact in FACTS[2:]),
        *(Dialogue.of(text) for text in CHATS),
    )
    assert others.about(FACTS[:2]) == [(FACTS[1], question_of(capital))], "Kano is edited, and its other fact is not"


def test_every_fact_is_asked_in_one_question_of_its_own() -> None:
    facts = list(facts_of("test", 0))
    assert len({fact.question() for fact in facts}) == len(facts) > 2000
    assert facts[:50] == list(facts_of("test", 0))[:50] != list(facts_of("test", 1))[:50]
    assert {fact.relation for fact in facts[-200:]} == {"country"}


def test_too_few_wrong_answers_are_an_error() -> None:
    known: Any = SimpleNamespace(answers={fact.key: "Somewhere." for fact in FACTS}, ask=lambda facts: None)
    search = found_among(FACTS, known, FactSearch(4, 1))
    assert search.wrong == FACTS and not search.right
    with pytest.raises(ValueError, match="gets 4 of 4 facts wrong: ask for at most as many edits"):
        found_among(FACTS, known, FactSearch(5, 0))
