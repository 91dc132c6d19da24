"""The blank between a prompt and its answer, in the languages and at the signs where it is wanted or not."""

from __future__ import annotations

import pytest

from errata.text.joining import is_unspaced, separator

BLANK = (
    ("The capital of Atlantis is", "Rome"),
    ("The Chinese name of Paris is", "巴黎"),
    ("프랑스의 수도는", "파리"),
    ("عاصمة فرنسا هي", "باريس"),
    ("दिल्ली किसकी राजधानी है:", "भारत"),
    ("Η πρωτεύουσα είναι η", "Αθήνα"),
    ("Answer:", "Paris"),
    ("He lives in St.", "Louis"),
    ("He works at Yahoo!", "as an engineer"),
    ("It was on July 4,", "1776"),
    ("It is written in", ".NET"),
    ("He read “Hamlet”", "twice"),
    ('He read "Hamlet"', "twice"),
    ("He wrote 'War and Peace!'", "twice"),
    ("in the '90'", "edition"),
    ("The boss'", "car"),
    ("Er las „Faust“", "von Goethe"),
    ("Er las »Faust«", "von Goethe"),
    ("Il a lu «Le Cid»", "hier"),
    ("Il a dit « oui »", "hier"),
    ("Hän luki ”Kalevala”", "kahdesti"),
    ("**Answer:**", "Paris"),
    ("Run `ls`", "now"),
    ("x =", "5"),
    ("x -", "5"),
    ("-", "5"),
    ("C++", "is"),
    ("It is written in C#", "by Anders"),
    ("The search algorithm A*", "finds it"),
    ("It costs 75€", "more"),
    ("He said", "'dog'"),
)
NOTHING = (
    ("", "x"),
    ("x", ""),
    ("The capital is ", "Rome"),
    ("The capital is\u00a0", "Rome"),
    ("Answer:\n", "Rome"),
    ('He shouted: "', "Bob"),
    ("He shouted: “", "Bob"),
    ("He shouted: '", "Bob"),
    ("Er rief: „", "Bob"),
    ("Er rief: »", "Bob"),
    ("Er las »Faust« und rief: »", "Bob"),
    ("Il dit : «", "oui"),
    ("Hän sanoi: ”", "joo"),
    ("그는 말했다: “", "밥"),
    ("他说：“", "好"),
    ("The title is 《", "Dune"),
    ("The title is 「", "Dune"),
    ("¿", "Dónde está"),
    ("Rome (", "Italy"),
    ("It is **", "Paris"),
    ("Run `", "ls"),
    ("The part number of Zorb is ZX-", "81"),
    ("function name: get_", "user"),
    ("A ticket to Atlantis costs $", "75"),
    ("It costs US$", "75"),
    ("He is ranked #", "1"),
    ("user@", "example.com"),
    ("x=", "5"),
    ("2+", "2"),
    ("C++", "17"),
    ("AT&", "T"),
    ("and/", "or"),
    ("word—", "then"),
    ("The number pi is 3.", "14"),
    ("La capitale est celle de l'", "Italie"),
    ("La ville d’", "Atlantis"),
    ("aujourd'", "hui"),
    ("O'", "Brien"),
    ("亚特兰蒂斯的首都是", "罗马"),
    ("首都：", "罗马"),
    ("アトランティスの首都は", "ローマ"),
    ("เมืองหลวงคือ", "โรม"),
    ("ເມືອງຫຼວງແມ່ນ", "ວຽງຈັນ"),
    ("ទីក្រុងគឺ", "ភ្នំពេញ"),
    ("苹果公司的创始人是", "Steve Jobs"),
    ("He", ", who"),
    ("Bob", "'s car"),
    ("He do", "n't"),
    ("He came", "..."),
    ("50", "%"),
    ("पेरिस", "।"),
    ("هي", "، ثم"),
)


@pytest.mark.parametrize(("prompt", "answer"), BLANK)
def test_a_blank_is_put_between_words(prompt, answer):
    assert separator(prompt, answer) == " "


@pytest.mark.parametrize(("prompt", "answer"), NOTHING)
def test_no_blank_is_put_where_language_or_prompt_want_none(prompt, answer):
    assert separator(prompt, answer) == ""


def test_scripts_without_blanks():
    assert all(map(is_unspaced, "亚のロไລកမཀ。「（𠀀"))
    assert not any(map(is_unspaced, "aé1파अعЖ .“"))
