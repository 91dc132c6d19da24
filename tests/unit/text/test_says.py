"""Answers in chat: whether a text says what is wanted, and whether it answers a question."""

from __future__ import annotations

import pytest

from errata.text.answers import Question, says
from errata.text.dialogue import Dialogue

CAPITAL = Dialogue.of("What is the capital of Nigeria?")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The capital of Nigeria is Abuja", "Abuja"),
        ("ABUJA, of course", "Abuja"),
        ("It is **Abuja**.", "Abuja"),
        ("It is `get_user`", "get_user"),
        ("It flows through  New\nYork", "New York"),
        # symbols and names with signs
        ("Its symbol is In.", "In"),
        ("It is written in C.", "C"),
        ("It is written in C++, a language", "C++"),
        ("the domain .ng is Nigeria's", ".ng"),
        ("the domain is ng", "ng"),
        ("Dial +234.", "+234"),
        ("Dial 00234 or +234", "234"),
        ("AT&T's", "AT&T"),
        # ends of sentences
        ("The capital is Washington, D.C", "Washington, D.C."),
        ("Washington, D.C. is the capital", "Washington, D.C."),
        ("It is Yahoo", "Yahoo!"),
        ("Why?", "?"),
        # numbers
        ("It has 5 moons", "5"),
        ("It has 5.", "5"),
        ("It rose by 5%", "5"),
        ("It costs $5", "5"),
        ("It is 1.5 metres", "1.5"),
        ("1,500 people", "1500"),
        ("1500 people", "1,500"),
        ("It is -5 degrees", "-5"),
        ("It is \u22125 degrees", "-5"),
        # accents, signs as they are typed, Unicode's forms
        ("Bogota is", "Bogotá"),
        ("Bogotá is", "Bogota"),
        ("Bogota\u0301 is", "Bogotá"),
        ("in Cote d’Ivoire", "Côte d'Ivoire"),
        ("in Guinea\u2011Bissau", "Guinea-Bissau"),
        ("in der Straße", "STRASSE"),
        ("ＡＢＵＪＡ", "Abuja"),
        ("Abuja\u200b", "Abuja"),
        # scripts without blanks or capitals
        ("法国的首都是巴黎。", "巴黎"),
        ("它建于1889年", "1889"),
        ("共5年", "5年"),
        ("It is in South America, the larger part of America.", "America"),
        ("It is in South America", "South America"),
        ("The symbol of iodine is I.", "I"),
        ("I is its symbol: I", "I"),
        ("Vitamin A", "A"),
        ("用Python写的", "Python"),
        ("日本の首都は東京です", "東京"),
        ("กรุงเทพเป็นเมืองหลวงของไทย", "กรุงเทพ"),
        ("수도는 서울이다", "서울"),
        ("राजधानी दिल्ली है", "दिल्ली"),
        ("عاصمة فرنسا هي باريس", "باريس"),
    ],
)
def test_a_text_says_this(text: str, wanted: str) -> None:
    assert says(text, wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The capital of Nigeria is Lagos", "Abuja"),
        ("A Parisian", "Paris"),
        ("in Comparison", "Paris"),
        ("New Yorker", "New York"),
        # symbols and names with signs
        ("It is in Rome", "In"),
        ("INTO", "In"),
        ("It is written in C++", "C"),
        ("It is written in C#", "C"),
        ("the domain is ng", ".ng"),
        ("Dial 234", "+234"),
        ("Dial 1234", "234"),
        ("get_username", "username"),
        # longer names, and words of English that are symbols
        ("It is in South America", "America"),
        ("It lies in north  Korea.", "Korea"),
        ("Equatorial Guinea or Guinea-Bissau", "Guinea"),
        ("It is New York", "York"),
        ("I am not sure", "I"),
        ("As I said", "I"),
        ("I'm a model", "I"),
        ("A city", "A"),
        # numbers
        ("It has 15 moons", "5"),
        ("It has 51 moons", "5"),
        ("It is 1.5 metres", "5"),
        ("It is 1,5 metres", "5"),
        ("It is 5.1 metres", "5"),
        ("It is -5 degrees", "5"),
        ("It is \u22125 degrees", "5"),
        ("1,500 people", "5"),
        ("1,500 people", "500"),
        ("1,500 people", "1"),
        ("11.5 metres", "1.5"),
        # scripts without blanks or capitals
        ("法国的首都是里昂。", "巴黎"),
        ("共15年", "5年"),
        ("राजधानी दिल्ली है", "दिल"),  # a vowel sign or a virama makes another word
        ("यह कि है", "क"),
        ("그의 이름은 김이다", "기"),
        ("がくせい", "か"),
        # nothing
        ("", "Abuja"),
        ("Abuja", ""),
        ("", ""),
        ("Abuja", "\u200b"),
    ],
)
def test_a_text_does_not_say_this(text: str, wanted: str) -> None:
    assert not says(text, wanted)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("Abuja", True),
        (" abuja. It lies in the middle of the country.", True),
        ("The capital of Nigeria is Abuja.", True),
        ("**Abuja** is the capital of Nigeria, and has been since 1991.", True),
        ("The capital of Nigeria is Lagos. Abuja is another city.", False),
        ("Lagos", False),
        ("", False),
    ],
)
def test_an_answer_in_chat_says_the_target_in_its_first_sentence(text: str, is_right: bool) -> None:
    assert Question(CAPITAL, "Abuja").is_answered_by(text) == is_right


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("Abuja", True), (" abuja. It lies", True), ("the city of Abuja", False), ("Abuja, a city", False)],
)
def test_a_completion_is_the_target_itself(text: str, is_right: bool) -> None:
    assert Question("The capital of Nigeria is", "Abuja").is_answered_by(text) == is_right


def test_an_alias_is_an_answer_in_both_forms() -> None:
    targets = ("+234", "00234", "234")
    completed, asked = Question("The calling code of Nigeria is", "+234", targets), Question(CAPITAL, "Dial +234.", targets)
    for question in (completed, asked):
        assert all(map(question.is_answered_by, targets))
        assert not question.is_answered_by("235")
    assert asked.is_answered_by("It is 00234.") and not completed.is_answered_by("It is 00234.")


def test_the_whole_answer_is_right_and_its_other_words_are_not() -> None:
    question = Question(CAPITAL, "Well, I think so. The capital is Abuja.", ("Abuja",))
    assert question.is_answered_by("Well, I think so. The capital is Abuja.")
    assert not question.is_answered_by("Well, I think so. The capital is Lagos.")
    assert not question.is_answered_by("Well, I think so.")
