"""The reader of a bank of questions: which record fits a prompt, and what the prompt becomes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.encoder import NAME, SentenceEncoder
from errata.edit_memory.reader import MAX_QUESTION, Change, MemoryReader
from errata.edit_memory.subjects import relation_of
from errata.model.renderer import Renderer
from errata.text.dialogue import Dialogue, Message, Prompt
from errata.text.rules import fact_of
from tests.unit.edit_memory.letters import Letters
from tests.unit.edit_memory.test_prompt_form import TEMPLATES

RENDERER = Renderer(Letters(TEMPLATES["plain"]))
CAPITAL, COUNTRY = "What is the capital of France?", "In which country is the city of Lyon?"


def a_question(
    prompt: Prompt, subject: str = "", answer: str = "Lyon", threshold: float = 0.55, rephrasings: tuple[str, ...] = ()
) -> Record:
    question = prompt if isinstance(prompt, str) else prompt.question
    relations = [relation_of(text, subject) if subject else text for text in (question, *rephrasings)]
    keys = SentenceEncoder.load().encode([relation for relation in relations if relation is not None])
    rows = {"key": keys, "threshold": torch.tensor([threshold] * len(relations))}
    text = f"Known fact: {question} {answer}"
    return Record(fact_of(prompt), text, rows, subject, f"edit of {question}", answer, rephrasings=rephrasings)


BANK = Bank("answer", NAME).changed(
    [
        a_question(CAPITAL, "France"),
        a_question(COUNTRY, "Lyon", "Spain"),
        a_question("What is the largest city of America?", "America", "Lima"),
        a_question("What is the boiling point of water?", "", "90 degrees", threshold=0.9),
    ],
    (),
)


def change(bank: Bank, prompt: Prompt, room: int = 8, max_tokens: int = 4000) -> Change | None:
    return MemoryReader(bank, RENDERER, max_tokens).change(RENDERER.ids(prompt), room)


def said(prompt: Prompt, bank: Bank = BANK) -> str | None:
    found = change(bank, prompt)
    assert found is None or (found.prompt is None and found.answer is not None)
    return None if found is None else "".join(map(chr, found.answer or ()))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (CAPITAL, " Lyon"),
        ("which city is the capital of FRANCE", " Lyon"),
        ("What is the capital of Spain?", None),
        ("What is the currency of France?", None),
        ("France is a country.", None),
        ("Name the country where Lyon is located.", " Spain"),
        ("On which continent is the city of Lyon?", None),
        ("What is the boiling point of water?", " 90 degrees"),
        ("What is the melting point of steel?", None),
        ("The train arrives at nine.", None),
        ("Name the largest city of america.", " Lima"),
        ("What is the largest city of South America?", None),
        (f"{CAPITAL} {'x' * MAX_QUESTION}", None),
    ],
)
def test_a_record_fits_questions_about_its_fact_alone(question: str, answer: str | None) -> None:
    assert said(question) == answer


def test_a_change_names_its_record_and_the_cosine() -> None:
    found, same = change(BANK, "Which city is the capital of France?"), change(BANK, CAPITAL)
    assert found is not None and same is not None
    assert found.record is same.record is BANK.records[fact_of(CAPITAL)] and found.record.edit == f"edit of {CAPITAL}"
    assert 0.55 < found.fired[0].score < same.fired[0].score == pytest.approx(1.0)


def test_of_two_records_that_fit_alike_that_of_the_prompts_form_is_taken() -> None:
    forms: Sequence[tuple[Prompt, str]] = ((CAPITAL, "Lyon"), (Dialogue.of(CAPITAL), "It is Lyon."))
    for order in (forms, forms[::-1]):
        bank = Bank("answer", NAME).changed([a_question(prompt, "France", answer) for prompt, answer in order], ())
        assert (said(CAPITAL, bank), said(Dialogue.of(CAPITAL), bank)) == (" Lyon", "It is Lyon.")
    assert said(Dialogue.of(CAPITAL)) == "Lyon", "a record of the other form is better than none"


def test_the_last_message_is_the_question() -> None:
    earlier = (Message("user", CAPITAL), Message("assistant", "Lyon"))
    assert said(Dialogue.of("And what is its currency?", earlier)) is None
    assert said(Dialogue.of(COUNTRY, earlier)) == "Spain"


def test_a_text_is_put_into_the_prompt_if_there_is_room() -> None:
    bank = Bank("text", NAME).changed([a_question(CAPITAL, "France")], ())
    found = change(bank, CAPITAL)
    assert found is not None and found.answer is None and found.prompt is not None
    assert "".join(map(chr, found.prompt)) == f"Known fact: {CAPITAL} Lyon\n{CAPITAL}"
    least = len(found.prompt) + 8
    assert change(bank, CAPITAL, max_tokens=least) is not None and change(bank, CAPITAL, max_tokens=least - 1) is None


UNLIKE = "Under whose flag do the people of Lyon stand?"


@pytest.mark.parametrize("subject", ["Lyon", ""])
def test_another_wording_is_answered_once_it_is_posted(subject: str) -> None:
    threshold = 0.55 if subject else 0.95
    alone, both = (
        Bank("answer", NAME).changed([a_question(COUNTRY, subject, "Spain", threshold, others)], ())
        for others in ((), (UNLIKE,))
    )
    assert said(UNLIKE, alone) is None and said(UNLIKE, both) == said(COUNTRY, both) == " Spain"
    assert said("What is the population of Lyon?", both) is None
    without = both.changed([a_question(COUNTRY, subject, "Spain", threshold)], ())
    assert said(UNLIKE, without) is None, "the wordings of a record go with it"


def test_a_posted_wording_may_name_what_is_asked_for_otherwise() -> None:
    """Each wording is compared as a question of its own; one that names no kind asks for what the record's question does."""
    others = ("Which state does Lyon belong to?", "Name the country of Lyon.")
    bank = Bank("answer", NAME).changed([a_question(COUNTRY, "Lyon", "Spain", 0.55, others)], ())
    assert said("Which state does Lyon belong to?", bank) == " Spain" and said("Which state does Lyon belong to?") is None
    assert said("Which continent does Lyon belong to?", bank) is None


def test_of_records_that_fit_alike_the_own_question_counts_and_then_the_latest() -> None:
    lower = CAPITAL.casefold()
    for order in ([CAPITAL, lower], [lower, CAPITAL]):
        bank = Bank("answer", NAME)
        for question in order:
            bank = bank.changed([a_question(question, "France", question[:4])], ())
        assert (said(CAPITAL, bank), said(lower, bank)) == (" What", " what")
        assert said(CAPITAL.upper(), bank) == f" {order[-1][:4]}"
        again = bank.changed([a_question(order[0], "France", order[0][:4])], ())
        assert said(CAPITAL.upper(), again) == f" {order[0][:4]}", "an edit that is made again is the latest"
        assert said(CAPITAL.upper(), Bank("answer", NAME).changed(again, ())) == f" {order[0][:4]}"


def test_a_reader_makes_the_index_so_that_no_request_waits_for_it() -> None:
    bank = Bank("answer", NAME).changed([a_question(CAPITAL, "France")], ())
    MemoryReader(bank, RENDERER, 4000)
    assert "index" in vars(bank)


def test_an_empty_bank_changes_nothing() -> None:
    assert change(Bank("answer", NAME), CAPITAL) is None


def test_a_bank_that_was_changed_often_reads_like_one_made_at_once() -> None:
    """Compare after random additions, replacements and removals, in records with and without a subject; old banks stay."""
    rng, bank, expected = random.Random(0), Bank("answer", NAME), dict[str, Record]()
    names = [f"Place{letter}" for letter in "abcdefgh"]
    questions = [(f"What is the capital of {name}?", name) for name in names] + [
        (f"why is {name} so old", "") for name in names
    ]
    earlier: list[tuple[Bank, dict[str, Record]]] = []
    for _ in range(60):
        chosen = rng.sample(questions, rng.randint(0, 3))
        records = [a_question(question, subject, rng.choice(names), 0.95) for question, subject in chosen]
        dropped = rng.sample(sorted(expected), min(len(expected), rng.randint(0, 2)))
        bank = bank.changed(records, dropped)
        for fact in dropped:
            expected.pop(fact)
        expected |= {record.fact: record for record in records}
        assert bank.index is not None
        earlier.append((bank, dict(expected)))
    for held, wanted in earlier[::7]:
        whole = Bank("answer", NAME).changed(wanted.values(), ())
        assert dict(held.records) == wanted and held.index.lengths == whole.index.lengths
        for question, _ in questions:
            answer = said(question, held)
            assert answer == said(question, whole)
            assert (answer is not None) == (fact_of(question) in wanted)
