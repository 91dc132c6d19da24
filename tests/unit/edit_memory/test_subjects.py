"""Subjects of questions: whole words, in any case, with or without accents, in languages with and without blanks."""

from __future__ import annotations

import unicodedata

import pytest

from errata.edit_memory.subjects import name_in, plain_words, relation_of, subjects_in, without, words_of


@pytest.mark.parametrize(
    ("question", "subject", "relation"),
    [
        ("What is the capital of France?", "France", "What is the capital of ?"),
        ("what is the CAPITAL of FRANCE", "France", "what is the CAPITAL of"),
        ("Where is the Côte d'Ivoire?", "cote d’ivoire", "Where is the ?"),
        (unicodedata.normalize("NFD", "Where is São Paulo?"), "Sao Paulo", "Where is ?"),
        ("France's capital, the capital of France, is", "France", "'s capital, the capital of , is"),
        ("日本の首都はどこですか", "日本", "の首都はどこですか"),
        ("Who created C++?", "C++", "Who created ?"),
    ],
)
def test_a_question_is_read_without_its_subject(question: str, subject: str, relation: str) -> None:
    assert relation_of(question, subject) == relation


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("What is the capital of Frances?", "France"),
        ("What is the capital of South Frankreich?", "Frank"),
        ("Who created C++?", "C"),
        ("What is the capital of France?", "Fra nce"),
        ("What is the capital of France?", "?!"),
        ("日本の首都はどこですか", "本日"),
    ],
)
def test_a_part_of_a_word_is_no_subject(question: str, subject: str) -> None:
    assert relation_of(question, subject) is None


def test_no_subject_is_found_inside_a_longer_one() -> None:
    known = [plain_words(name) for name in ("York", "New York", "Paris", "Duke of York")]
    text = "Is the Duke of York in New York, in Paris or in York?"
    found = subjects_in(words_of(text), known, {len(words) for words in known})
    assert {" ".join(words): [text[words_of(text)[a].begin :][:4] for a, _ in places] for words, places in found.items()} == {
        "duke of york": ["Duke"],
        "new york": ["New "],
        "paris": ["Pari"],
        "york": ["York"],
    }
    assert without(text, words_of(text), found["york",]) == "Is the Duke of York in New York, in Paris or in ?"


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("In which country is the Eiffel Tower?", "Eiffel Tower"),
        ("Who won the 2022 World Cup?", "2022 World Cup"),
        ("Where was Ludwig van Beethoven born?", "Ludwig van Beethoven"),
        ("Who is the Duke of York?", "Duke of York"),
        ("The capital of France is", "France"),
        ("What is the boiling point of water?", ""),
        ("who wrote faust", ""),
        ("", ""),
    ],
)
def test_a_question_without_a_given_subject_has_its_longest_name_as_one(question: str, name: str) -> None:
    assert name_in(question) == name
