"""Rules of text: cleaning, faults, places of subjects, and prompts that are the same."""

from __future__ import annotations

import time

import pytest

from errata.text.dialogue import Dialogue, Message
from errata.text.rules import cleaned, is_blank, prompt_key, same_text, subject_span, text_fault


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" Bob", "Bob"),
        ("Rome\n", "Rome"),
        ("\ufeffRome", "Rome"),
        ("\u200bRome\u2060 ", "Rome"),
        ("\u200b \ufeff\u00a0\u200bRome", "Rome"),
        ("ភ្នំ\u200bពេញ\u200b", "ភ្នំ\u200bពេញ"),
        ("\u3000東京\u00a0", "東京"),
        ("Beyonce\u0301", "Beyoncé"),
        ("New  York", "New  York"),
        ("ﬁn", "ﬁn"),
        (" \n", ""),
        ("Bob\u200f", "Bob"),
    ],
)
def test_a_target_is_cleaned(text, wanted):
    assert cleaned(text) == wanted == cleaned(wanted)


def test_a_text_of_invisible_characters_is_blank():
    assert all(map(is_blank, ("", " \n\t", "\ufeff\u200b", "\u2028\u00a0", "\ufe0f")))
    assert not any(map(is_blank, ("a", " . ", "中", "🎸")))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a\ud800b", r"lone surrogate U\+D800 at character 1"),
        ("ab\x00", r"control character U\+0000 at character 2"),
        ("\x1b[0m", r"U\+001B at character 0"),
        ("caf\ufffd", r"U\+FFFD at character 3"),
        ("x\uffff", r"U\+FFFF"),
        ("\ufdd0", r"U\+FDD0"),
        ("\U0001fffe", r"U\+1FFFE"),
    ],
)
def test_what_no_model_writes_whole_is_named(text, part):
    with pytest.raises(ValueError, match=part):
        raise ValueError(text_fault(text))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Pa\u00adris", r"invisible character U\+00AD at character 2; take it out"),
        ("Pa\u2060ris", r"U\+2060"),
        ("Rome\ufeff", r"U\+FEFF at character 4"),
        ("Rome\ufff9", r"U\+FFF9"),
        ("Rome\U000e0041\U000e0042", r"U\+E0041 at character 4"),
        ("🏴\U000e0067 Rome", r"U\+E0067"),
        ("Rome\u202eoN", r"U\+202E at character 4, which shows the text in another order than it is learnt"),
        ("\u2067Rome\u2069", r"U\+2067"),
        ("Pa\u200bris", r"zero-width space U\+200B at character 2, which only languages without blanks write"),
        ("\u3164", r"U\+3164"),
        ("Ro\u034fme", r"U\+034F"),
        ("Rome\U000e0fff", r"U\+E0FFF"),
    ],
)
def test_what_is_invisible_and_needed_by_no_language_is_named(text, part):
    with pytest.raises(ValueError, match=part):
        raise ValueError(text_fault(text))


SCRIPTS = {
    "lines": "a\tb\r\nc",
    "emoji of a family": "👩\u200d👩\u200d👧",
    "emoji with a selector": "❤\ufe0f",
    "the flag of Wales": "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
    "Hindi": "क्\u200dष",
    "Persian": "می\u200cخواهم",
    "Hebrew": "C++\u200f הוא",
    "Arabic": "\u061c1,5\u200e ريال",
    "Mongolian": "ᠬᠠᠭᠠ\u180eᠨ",
    "Khmer": "ភ្នំ\u200bពេញ\u200b\u200b។",
    "Thai and Latin": "วิน\u200bPC",
    "Khmer with a number": "ឆ្នាំ\u200b2019\u200b ។",
    "Khmer with a name": "ក្រុង\u200b “\u200bAngkor\u200b”",
    "Javanese": "ꦧꦱ\u200bꦗꦮ",
    "Han with a selector": "葛\U000e0100",
    "rare Han": "𠀀",
    "NFD": "Beyonce\u0301",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_text_of_every_script_is_in_order(text):
    assert text_fault(text) is None and text_fault("") is None


def test_a_long_run_of_zero_width_spaces_is_read_once():
    """A text of the longest length is judged in milliseconds, however many of its characters need a look."""
    began = time.process_time()
    assert text_fault("ก" + "\u200b" * 200_000 + "ก") is None
    assert time.process_time() - began < 2


def test_a_subject_is_found_in_either_form():
    assert subject_span("Who is Beyonce\u0301?", "Beyoncé") == (7, 15)
    assert subject_span("Who is Beyoncé?", "Beyonce\u0301") == (7, 14)
    assert subject_span("Band 🎹 and Band 🎸", "Band 🎸") == (11, 17)
    assert subject_span("Rome and Rome", "Rome") == (0, 4)
    assert subject_span("Rome", "Paris") is None and subject_span("Rome", "") is None


def test_prompts_are_the_same_apart_from_blanks_and_form():
    assert same_text(" a \n b\u3000") == "a b" and same_text("e\u200b\u0301") == "é"
    assert same_text("ភ្នំ\u200bពេញ") == same_text("ភ្នំពេញ") and same_text("می\u200cخواهم") != same_text("میخواهم")
    assert prompt_key("Who is Beyonce\u0301 ?") == prompt_key("Who  is Beyoncé ?\n")
    assert prompt_key("Who is it?") != prompt_key("who is it?")
    asked = Dialogue.of("Who is it?")
    assert prompt_key(asked) == prompt_key(Dialogue.of(" Who is  it?")) != prompt_key("Who is it?")
    assert prompt_key(asked) != prompt_key(Dialogue.of("Who is it?", (Message("system", "Be brief."),)))
