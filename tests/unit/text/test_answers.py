"""Comparison of generated answers: sentences, signs that stay, articles and Unicode forms."""

from __future__ import annotations

import pytest

from errata.text.answers import first_sentence, normalise_answer, same_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The Eiffel Tower.", "eiffel tower"),
        ("Paris\nQuestion: what", "paris"),
        ("Paris. It lies on", "paris"),
        ("\n 3.5 metres", "3.5 metres"),
        ("an  apple, a pear!", "apple pear"),
        ("", ""),
        ("Theatre", "theatre"),
        ("A", "a"),
        ("The.", "the"),
        (" ?", "?"),
        ("北京。是中国", "北京"),
        ("「東京」です。", "東京です"),
        ("पेरिस। यह", "पेरिस"),
        ("باريس؟ نعم", "باريس"),
        ("¿Madrid?", "madrid"),
        ("1,234,567 people", "1234567 people"),
        ("3,5 Liter", "3,5 liter"),
        ("12:30", "12:30"),
        ("**Paris**", "paris"),
        ("*Paris*, of course", "paris of course"),
        ("`get_user`", "get_user"),
    ],
)
def test_normalise_answer(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("St. Louis. It lies on", "St. Louis"),
        ("J. R. R. Tolkien", "J. R. R. Tolkien"),
        ("St. Louis\nQuestion:", "St. Louis"),
        ("Washington, D.C.", "Washington, D.C."),
        ("Washington, D.C. is", "Washington, D.C."),
        ("a.", "A"),
        ("PARIS.", "Paris"),
        ("Yahoo! It is", "Yahoo!"),
        ("Yahoo", "Yahoo!"),
        ("Panic! at the Disco", "Panic! at the Disco"),
        ("U.S.", "US"),
        ("Ph.D.", "PhD"),
        ("北京。", "北京"),
        ("巴黎！", "巴黎"),
        ("ปารีส", "ปารีส"),
        ("파리.", "파리"),
        ("باريس،", "باريس"),
        ("Beyonce\u0301", "Beyoncé"),
        ("\u22125", "-5"),
        ("2–1", "2-1"),
        ("**Paris**. It is", "Paris"),
        ("首都是**巴黎**。", "首都是巴黎"),
        ("“Paris.” He", "Paris"),
        ("Rock 'n' Roll", "Rock n Roll"),
        ("well-known", "wellknown"),
        ("Paris\u200b", "Paris"),
        ("Paris\u00a0", "Paris"),
        ("la France", "France"),
        ("«La France»", "France"),
        ("l'Italie", "Italie"),
        ("L’Italie", "l'Italie"),
        ("die Donau", "Donau"),
        ("el niño", "niño"),
        ("het huis", "huis"),
    ],
)
def test_these_answers_are_the_same(said, wanted):
    assert same_answer(said, wanted, wanted) and same_answer(wanted, said, wanted)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("St. Petersburg", "St. Louis"),
        ("St. Louis is", "St. Louis"),
        ("J. S. Bach", "J. R. R. Tolkien"),
        ("", "A"),
        ("the", "A"),
        ("Paris and Lyon", "Paris"),
        ("Parisian", "Paris"),
        ("C++", "C"),
        ("C#", "C"),
        ("A*", "A"),
        ("A+", "A"),
        ("C*-algebra", "C-algebra"),
        ("-5", "5"),
        ("\u22125", "5"),
        ("+5", "5"),
        ("$5", "5"),
        ("€5", "5"),
        ("50%", "50"),
        ("90°", "90"),
        ("3.5", "35"),
        ("3,5", "35"),
        ("12,34", "1234"),
        ("1/2", "12"),
        ("2-1", "21"),
        ("12:30", "1230"),
        ("2*3*4", "234"),
        ("AT&T", "ATT"),
        ("snake_case", "snakecase"),
        ("Łódź", "Lodz"),
        ("La Paz", "Le Paz"),
        ("The", ""),
    ],
)
def test_these_answers_differ(said, wanted):
    assert not same_answer(said, wanted, wanted) and not same_answer(wanted, said, wanted)


def test_a_sentence_ends_where_its_script_says():
    assert first_sentence("Paris。是法国") == "Paris"
    assert first_sentence("巴黎。是法国的首都") == "巴黎"
    assert first_sentence("3.5 and 4.5") == "3.5 and 4.5"
    assert first_sentence("... Paris. It") == "... Paris"
    assert first_sentence("St. Louis. It lies", "St. Louis") == "St. Louis"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("It was Mr. Smith. He left", "It was Mr. Smith"),
        ("It lies in St. Louis. A river", "It lies in St. Louis"),
        ("See Dr. No. It is a film", "See Dr. No"),
        ("No. It is not", "No"),
        ("Ask Dr. A. Smith. He", "Ask Dr. A. Smith"),
        ("A state of the U.S. government. It", "A state of the U.S. government"),
        ("It is in the U.S. It has", "It is in the U.S"),
        ("Written by J. K. Rowling. She", "Written by J. K. Rowling"),
        ("John F. Kennedy was shot. He", "John F. Kennedy was shot"),
        ("The symbol is W. Tungsten is a metal.", "The symbol is W"),
        ("It is vitamin C. It is", "It is vitamin C"),
        ("e.g. Paris. More", "e.g. Paris"),
        ("It ends in St.", "It ends in St"),
        ("It was Mr.\nSmith", "It was Mr"),
    ],
)
def test_a_shortened_word_does_not_end_a_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_the_full_stop_of_the_target_ends_the_sentence() -> None:
    assert first_sentence("Washington, D.C. Is it", "Washington, D.C.") == "Washington, D.C"
    assert first_sentence("Washington, D.C. statehood. It", "statehood") == "Washington, D.C. statehood"
