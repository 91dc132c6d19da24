"""Kinds of questions: a person, a time, a place, a number, or the thing that their words name."""

from __future__ import annotations

import pytest

from errata.edit_memory.asked_for import NUMBER, PERSON, PLACE, TIME, ask_for_the_same, asked_for
from errata.testbed.fact import WORDINGS
from errata.testbed.world_facts import CONTINENT_OF_CITY


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who founded it?", PERSON),
        ("Whose company is it?", PERSON),
        ("When was she born?", TIME),
        ("In which year was she born?", TIME),
        ("Where's the tower?", PLACE),
        ("How many people live there?", NUMBER),
        ("Which musical instrument does he play?", "instrument"),
        ("Lyon is a city in which country?", "country"),
        ("What money do people pay with?", "currency"),
        ("Which city of Lyon has the most people?", "city"),
        ("Which languages does she speak?", "language"),
        ("Name the year in which she died.", TIME),
        ("Name the place of birth of Ada.", PLACE),
        ("Name the country where Lyon lies.", "country"),
        ("Name the city whose airport it is.", "city"),
        ("What is the name of the city?", "city"),
        ("What is the population of Lyon?", NUMBER),
        ("What's the name?", None),
        ("What's the capital?", None),
        ("Name the capital.", None),
        ("¿Cuál es la capital?", None),
        ("It is what", None),
    ],
)
def test_question_words_say_what_is_asked_for(question: str, expected: str | None) -> None:
    assert asked_for(question) == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Where was she born?", "When was she born?", False),
        ("Where was she born?", "In which city was she born?", True),
        ("Who plays him?", "Which actor plays him?", True),
        ("When did it open?", "Which architect built it?", False),
        ("In which country is it?", "On which continent is it?", False),
        ("How many people live there?", "Which city is it?", False),
        ("In which town is it?", "Which city is it in?", True),
        ("Name the date of birth of Ada.", "Name the place of birth of Ada.", False),
        ("Who owns it?", "Which company is its owner?", True),
        ("Where was she born?", "Name her birthplace.", True),
    ],
)
def test_questions_that_ask_for_different_things_are_distinguished(one: str, other: str, same: bool) -> None:
    assert ask_for_the_same(one, other) is ask_for_the_same(other, one) is same


def test_all_phrasings_of_a_relation_ask_for_the_same() -> None:
    for wording in WORDINGS.values():
        assert all(ask_for_the_same(wording.questions[0], other) for other in wording.questions)
    assert not ask_for_the_same(WORDINGS["country"].questions[0], CONTINENT_OF_CITY)
