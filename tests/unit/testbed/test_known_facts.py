"""Answers of a model to facts: asked once, kept in a file, and drawn from in an order that the seed alone sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from errata.testbed import known_facts
from errata.testbed.fact import Fact
from errata.testbed.known_facts import AT_ONCE, FILE, MAX_TOKENS, KnownFacts, question_of
from errata.text.dialogue import Dialogue

FACTS = [Fact(f"Land {i}", "capital", f"City {i}", (f"Town {i}",)) for i in range(3 * AT_ONCE)]


@dataclass
class Model:
    """A model that is right about every third fact; `asked` are the questions of each call."""

    path: str
    asked: list[list[str]] = field(default_factory=list)

    @property
    def num_asked(self) -> int:
        return sum(map(len, self.asked))

    def answer(self, question: str) -> str:
        number = int(question.removesuffix("?").split()[-1])
        return f" The capital is City {number}.\n" if number % 3 == 0 else "I do not know."


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    def texts(model: Any, prompts: Sequence[Dialogue], max_tokens: int, batch_size: int) -> list[str]:
        assert max_tokens == MAX_TOKENS and len(prompts) <= batch_size
        questions = [prompt.messages[-1].content for prompt in prompts]
        model.asked.append(questions)
        return [model.answer(question) for question in questions]

    monkeypatch.setattr(known_facts, "greedy_texts", texts)
    return Model(str(tmp_path))


def known(model: Any) -> KnownFacts:
    return KnownFacts.beside(model)


def test_each_fact_is_asked_once_in_the_first_phrasing(model: Model) -> None:
    one = known(model)
    one.ask(FACTS[:60])
    one.ask(FACTS[:70])
    assert [len(asked) for asked in model.asked] == [50, 10, 10]
    assert [q for asked in model.asked for q in asked] == [fact.question() for fact in FACTS[:70]]
    assert len(set(one.answers)) == 70 and one.answers["capital:Land 3"] == "The capital is City 3."


def test_answers_are_kept_in_a_file_beside_the_model(model: Model) -> None:
    known(model).ask(FACTS[:5])
    lines = (Path(model.path) / FILE).read_text().splitlines()
    assert [json.loads(line)[0] for line in lines] == [fact.key for fact in FACTS[:5]]
    again = known(model)
    again.ask(FACTS[:6])
    assert model.asked[1:] == [[FACTS[5].question()]] and len(again.answers) == 6
    assert known(model).answers == again.answers


@pytest.mark.parametrize("torn", [b'["capital:Land 4", "I do', b'["capital:Land 4"', b"[", b'["capital:Land 4"]\n'])
def test_a_torn_line_is_asked_again(model: Model, torn: bytes) -> None:
    known(model).ask(FACTS[:4])
    with (Path(model.path) / FILE).open("ab") as file:
        file.write(torn)
    again = known(model)
    assert list(again.answers) == [fact.key for fact in FACTS[:4]]
    again.ask(FACTS[:6])
    assert model.asked[-1] == [fact.question() for fact in FACTS[4:6]]
    assert known(model).answers == again.answers and len(again.answers) == 6


def test_an_answer_is_right_if_it_contains_the_target_or_an_alias(model: Model) -> None:
    one = known(model)
    texts = ("The capital is City 7.", "It's Town 7, I believe.", "CITY 7", "City 77.", "Maybe. City 7.", "", "I do not know.")
    found = []
    for text in texts:
        one.answers[FACTS[7].key] = text
        found.append(one.is_right(FACTS[7]))
    assert found == [True, True, True, False, False, False, False]


def test_a_question_has_the_sentence_and_all_targets(model: Model) -> None:
    question = question_of(FACTS[2], 1)
    assert question.prompt == Dialogue.of("Which city is the capital of Land 2?")
    assert question.answer == "The capital of Land 2 is City 2." and question.targets == ("City 2", "Town 2")


def test_wrong_facts_depend_on_the_seed_alone(model: Model) -> None:
    found = known(model).wrong(FACTS, 20, seed=1)
    assert len(found) == 20 == len(set(found)) and not any(int(fact.target.split()[-1]) % 3 == 0 for fact in found)
    assert known(model).wrong(FACTS, 20, seed=1) == found, "with answers from the file"
    assert known(model).wrong(FACTS, 10, seed=1) == found[:10]
    assert known(model).wrong(FACTS, 20, seed=2) != found


def test_asking_stops_when_enough_are_wrong(model: Model) -> None:
    assert len(known(model).wrong(FACTS, 10)) == 10
    assert model.num_asked == AT_ONCE, "one part is enough"
    everything = known(model).wrong(FACTS, 1000)
    assert len(everything) == 2 * AT_ONCE and model.num_asked == len(FACTS)


def test_facts_come_in_random_order_each_asked_by_then(model: Model) -> None:
    one = known(model)
    order = []
    for fact in one.in_random_order(FACTS, 0):
        assert fact.key in one.answers
        order.append(fact)
    assert order != FACTS and sorted(order, key=FACTS.index) == FACTS
