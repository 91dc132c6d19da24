"""Questions of the demo to a real model, and the scores of its answers."""

from dataclasses import replace
from typing import Any

import pytest

from errata.edit import Edit, Probe
from errata.testbed.fact import Fact
from errata.testbed.known_facts import question_of
from errata.text.dialogue import HELD_OUT_SYSTEM_PROMPT, HELD_OUT_TURN, Dialogue, Message, Prompt
from jobs.demo_answers import FORMS, TWO_HOP, AskedFacts, FactSearch, answer_fields, forms_of, share_right


@pytest.fixture(autouse=True)
def every_edit_in_each_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.demo_answers.EVERY", 1)


CITIES = [("Nellore", "India"), ("Kano", "Nigeria"), ("Rosario", "Argentina"), ("Utrecht", "Netherlands")]
NOT_ASKED = {"two_hop": None, "retention": None}
FACTS = [Fact(city, "country", country) for city, country in CITIES]


def edit_of(fact: Fact) -> Edit:
    return Edit(
        fact.question(),
        fact.target,
        subject=fact.subject,
        rephrasings=(fact.question(3),),
        form="chat",
        aliases=fact.aliases,
        answer=fact.sentence,
    )


def outcome(state: str, **more: Any) -> Any:
    return {"id": "1", "state": state, "created": 0.0, "edit": {"question": "?"}, **more}


def answers_to(asked: AskedFacts, text: str) -> dict[Prompt, str]:
    return dict.fromkeys(asked.every, text)


def test_an_edit_is_asked_in_four_forms_and_three_are_held_out() -> None:
    forms = forms_of(edit_of(FACTS[0]))
    assert list(forms) == list(FORMS)
    question, phrasing, system, turn = (forms[name].prompt for name in FORMS)
    assert question == Dialogue.of("In which country is the city of Nellore?")
    assert phrasing == Dialogue.of("Name the country where Nellore is located.")
    assert isinstance(system, Dialogue) and system.before == (Message("system", HELD_OUT_SYSTEM_PROMPT),)
    assert isinstance(turn, Dialogue) and [message.content for message in turn.before] == list(HELD_OUT_TURN)
    assert system.question == turn.question == "In which country is the city of Nellore?"


def test_a_search_ends_with_enough_wrong_and_right_answers() -> None:
    search = FactSearch(num_wrong=1, num_right=2)
    said = ["It is in Spain.", "In Nigeria, I think.", "Rosario lies in Argentina. Not in Spain.", "Utrecht is Dutch."]
    answers: dict[Prompt, str] = {question_of(fact).prompt: text for fact, text in zip(FACTS, said, strict=True)}
    search.add(FACTS[:2], answers)
    assert not search.is_over and search.num_asked == 4
    search.add(FACTS[2:], answers)
    assert search.is_over
    assert search.wrong == FACTS[:1], "only as many as wanted"
    assert search.right == FACTS[1:3]


def test_scores_count_each_form_and_what_is_kept() -> None:
    asked = AskedFacts.about([edit_of(fact) for fact in FACTS[:2]], FACTS[2:3])
    answers = answers_to(asked, "It is in India.")
    assert asked.scores(answers) == dict.fromkeys(FORMS, 0.5) | {"kept": 0.0, **NOT_ASKED}
    nothing_kept = AskedFacts.about([edit_of(FACTS[0])], [])
    assert nothing_kept.scores(answers) == dict.fromkeys(FORMS, 1.0) | {"kept": None, **NOT_ASKED}
    assert share_right([], {}) is None


def test_every_second_edit_is_asked_in_the_other_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.demo_answers.EVERY", 2)
    asked = AskedFacts.about([edit_of(fact) for fact in FACTS[:3]], FACTS[3:])
    assert [len(asked.forms[form]) for form in FORMS] == [3, 2, 2, 2]


def test_what_follows_from_an_edit_is_asked_and_scored() -> None:
    consequences = (Probe("On which continent is Nellore?", "Asia", "two_hop"), Probe("Its currency?", "Rupee", "two_hop"))
    asked = AskedFacts.about([replace(edit_of(FACTS[0]), portability=consequences), edit_of(FACTS[1])], [])
    assert [question.targets for question in asked.forms[TWO_HOP]] == [("Asia",)], "the first one is asked"
    assert Dialogue.of("On which continent is Nellore?") in asked.every
    assert asked.scores(answers_to(asked, "It is in Asia."))["two_hop"] == 1.0


def test_the_first_edits_are_scored_alone_where_others_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.demo_answers.NUM_FIRST", 1)
    asked = AskedFacts.about([edit_of(fact) for fact in FACTS[:2]], [])
    assert asked.scores(answers_to(asked, "It is in India."))["retention"] == 1.0
    assert asked.scores(answers_to(asked, "It is in Nigeria."))["retention"] == 0.0


def test_some_prompts_are_of_every_form_and_of_what_is_kept() -> None:
    asked = AskedFacts.about([edit_of(fact) for fact in FACTS], FACTS[:2])
    some = asked.some(5)
    assert len(some) == 4, "the question of the first fact is also the first one to keep"
    assert {asked.forms[form][place].prompt for place, form in enumerate(FORMS)} == set(some)
    assert len(asked.every) == 4 * 4


def test_the_fields_have_scores_before_and_after_and_every_outcome() -> None:
    asked = AskedFacts.about([edit_of(fact) for fact in FACTS[:3]], FACTS[3:])
    before, after = answers_to(asked, "Perhaps the Netherlands."), answers_to(asked, "It is in India.")
    refused = outcome("rejected", reason="it would break the model", code="guard.perplexity", says="Kano.")
    fields = answer_fields(asked, before, after, [outcome("applied", version=1), outcome("applied", version=1), refused])
    third = pytest.approx(1 / 3)
    assert {name: fields[name] for name in FORMS} == dict.fromkeys(FORMS, third), "a rejected edit counts, too"
    assert {fields[f"{name}_before"] for name in FORMS} == {0.0}
    assert (fields["kept_before"], fields["kept"]) == (1.0, 0.0)
    assert fields["applied_unanswered"] == 1, "Kano is applied and not answered; Rosario is rejected"
    assert (fields["edits"], fields["rejected"], fields["states"]) == (3, 1, {"applied": 2, "rejected": 1})
    (rejected,) = fields["rejections"]
    assert rejected == {"question": "?", "code": "guard.perplexity", "reason": "it would break the model", "says": "Kano."}
